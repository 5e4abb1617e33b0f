"""Runs the command `leben`: its table of commands, and how a refusal is shown.

Every command finds a mesh by its data folder or its URL. What moves money asks the treasury or the ledger; no command
adds up money itself.
"""

from __future__ import annotations

import typer

from channels.errors import ChannelError
from serving.cli.console import Stopped, err, fail
from serving.cli.lazy import Command, Group, group, missing_extra
from serving.errors import StartError

COMMANDS: dict[str, Command | Group] = {
    "up": Command("mesh:up"),
    "demo": Command("mesh:demo"),
    "status": Command("mesh:status"),
    "settle": Command("mesh:settle"),
    "wallet": Group(
        "Make and fund payers' wallets.",
        {
            "new": Command("wallet:wallet_new"),
            "fund": Command("wallet:wallet_fund", {"ignore_unknown_options": True}),
            "show": Command("wallet:wallet_show"),
        },
    ),
    "receipt": Group(
        "Fetch receipts with their proofs, and check them offline.",
        {
            "get": Command("account:receipt_get"),
            "verify": Command("account:receipt_verify"),
        },
    ),
    "statement": Command("account:statement"),
    "earnings": Group(
        "Show and withdraw the earnings of an owner of knowledge, data or compute.",
        {
            "show": Command("account:earnings_show"),
            "withdraw": Command("account:earnings_withdraw"),
        },
    ),
    "withdraw": Group(
        "Take a channel's money back without the mesh's consent.",
        {
            "start": Command("account:withdraw_start"),
            "finish": Command("account:withdraw_finish"),
        },
    ),
    "dapps": Command("catalogue:dapps"),
    "dapp": Group(
        "Install, write, check and measure DApps.",
        {
            "list": Command("dapp:dapp_list"),
            "example": Command("dapp:dapp_example"),
            "evaluate": Command("dapp:dapp_evaluate"),
            "new": Command("author:dapp_new"),
            "check": Command("author:dapp_check"),
            "serve": Command("author:dapp_serve"),
            "install": Command("install:dapp_install"),
            "enable": Command("install:dapp_enable"),
            "disable": Command("install:dapp_disable"),
            "rollback": Command("install:dapp_rollback"),
        },
    ),
    "guideline": Group(
        "Explain, check and compare guidelines.",
        {
            "list": Command("guideline:guideline_list"),
            "fields": Command("guideline:guideline_fields"),
            "explain": Command("guideline:guideline_explain"),
            "lint": Command("guideline:guideline_lint"),
            "table": Command("guideline:guideline_table"),
            "diff": Command("guideline:guideline_diff"),
        },
    ),
    "ledger": Group(
        "Check, back up and repair the ledger.",
        {
            "verify": Command("ledger:ledger_verify"),
            "aside": Command("ledger:ledger_aside"),
            "quarantine": Command("ledger:ledger_quarantine"),
            "backup": Command("ledger:ledger_backup"),
            "restore": Command("ledger:ledger_restore"),
        },
    ),
    "keys": Group(
        "List, encrypt and rotate the mesh's private keys.",
        {
            "list": Command("keys:keys_list"),
            "encrypt": Command("keys:keys_encrypt"),
            "rotate": Command("keys:keys_rotate"),
        },
    ),
    "audit": Group(
        "Check and export the audit log.",
        {
            "verify": Command("audit:audit_verify"),
            "export": Command("audit:audit_export"),
        },
    ),
    "logs": Command("logs:logs"),
    "chain": Group(
        "Settle on a chain: contracts, a payer's way out, roots.",
        {
            "init": Command("chain:chain_init"),
            "genesis": Command("chain:chain_genesis"),
            "withdraw": Command("chain:chain_withdraw"),
            "finish": Command("chain:chain_finish"),
            "root": Command("chain:chain_root"),
        },
    ),
}

app = typer.Typer(cls=group(COMMANDS), no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def leben() -> None:
    """Leben Mesh: clinical models, paid per call."""


REFUSALS = ("serving.cluster.data_folder.FolderInUse", "dapps.packages.registry.UnknownDApp")
"""More refusals, by name: their modules need extras that may not be installed."""


def main() -> None:
    """Runs a command; a refusal is one plain line, not a traceback."""
    try:
        app()
    except Stopped as stopped:
        err.print(f"leben: {stopped}", highlight=False)
        raise SystemExit(stopped.status) from None
    except ModuleNotFoundError as error:
        extra = missing_extra(error)
        if extra is None:
            raise
        fail(f'this command needs {error.name}, which is not installed: pip install "leben-mesh[{extra}]"', status=2)
    except OSError as error:
        fail(f"{error.filename or 'the system'}: {error.strerror or error}")
    except Exception as error:
        text = refusal(error)
        if text is None:
            raise
        fail(text)


def refusal(error: BaseException) -> str | None:
    """The text of a refusal; None for a fault of ours."""
    if isinstance(error, ChannelError | StartError):
        return str(error)
    names = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__]
    if any(name in REFUSALS for name in names):
        return str(error)
    if "pydantic_core._pydantic_core.ValidationError" in names:
        wrong = error.errors()[0]  # type: ignore[attr-defined]
        text = f"{wrong['msg'][0].lower()}{wrong['msg'][1:]}"
        return f"LEBEN_{str(wrong['loc'][0]).upper()}: {text}; see docs/operate.md"
    return None
