"""Reads and changes `leben.yaml` in the data folder: which DApps run, where, in how many replicas, at what price.

The file is the operator's own: commands change single values in it and keep every comment. It is read whole or not at
all, and an error names its line. Without the file, the settings select the DApps.
"""

from __future__ import annotations

import hashlib
from io import StringIO
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from channels import private_files
from dapps.api import Configuration
from dapps.packages import NAME
from serving.config.scale import Scale
from serving.config.settings import KEY, LABEL, Settings
from serving.errors import StartError

FILE = "leben.yaml"
HEADER = """\
# Which DApps this mesh serves: a running mesh follows every change of this file within a second, one replica after the
# other, and loses no call over it. `leben dapp install`, `enable`, `disable` and `rollback` write it too.
#   package:  the installed version that answers; without it, what the environment offers
#   previous: what `leben dapp rollback` returns to
#   enabled:  false takes the DApp off the mesh
#   trusted:  true runs its code in the replica's own process; otherwise it is isolated, in one without secrets
#   replicas: how many answer: a number, or least, most, calls, up_s and down_s as in LEBEN_SCALE
#   where:    what each needs of a machine: cpus, gpus, resources and labels of a node
#   price:    in atomic units, instead of the author's: per_item, maximum_items, guideline, per_gpu_second, maximum
#   maximum_batch, thresholds: instead of the author's; these and the price change between two calls, without a restart
"""


class Where(BaseModel):
    """What a replica needs of a machine; None: as the mesh thinks right."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cpus: float | None = Field(default=None, ge=0)
    gpus: float | None = Field(default=None, ge=0)
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    labels: dict[Annotated[str, Field(pattern=KEY)], Annotated[str, Field(pattern=LABEL)]] = Field(default_factory=dict)


class PriceOverride(BaseModel):
    """The operator's price instead of the author's, in atomic units."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    per_item: int | None = Field(default=None, ge=0)
    maximum_items: int | None = Field(default=None, ge=1)
    guideline: int | None = Field(default=None, ge=0)
    per_gpu_second: int | None = Field(default=None, ge=0)
    maximum: int | None = Field(default=None, ge=1)


class Entry(BaseModel):
    """One DApp of the file; `package` and `previous` are `distribution/version-digest`, empty: the environment's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    package: str = Field(default="", pattern=r"^([a-z0-9_]+/[A-Za-z0-9._+-]+)?$")
    previous: str = Field(default="", pattern=r"^([a-z0-9_]+/[A-Za-z0-9._+-]+)?$")
    enabled: bool = True
    trusted: bool = False
    replicas: Scale | None = None
    where: Where = Where()
    price: PriceOverride | None = None
    maximum_batch: int | None = Field(default=None, ge=1)
    thresholds: dict[str, float] = Field(default_factory=dict)

    @field_validator("replicas", mode="before")
    @classmethod
    def _as_many_as(cls, raw: object) -> object:
        """A number alone is as many at any time."""
        return {"least": raw} if isinstance(raw, int) else raw

    @property
    def config(self) -> dict[str, Any]:
        """What of it a replica takes up while it runs, see `dapps.api.configuration`."""
        price = {name: value for name, value in self.price or () if value is not None}
        return Configuration(price, self.maximum_batch, self.thresholds).to_json()

    @field_validator("where", "thresholds", mode="before")
    @classmethod
    def _nothing_is_nowhere(cls, raw: object) -> object:
        return {} if raw is None else raw

    @property
    def serving(self) -> Entry:
        """Only what a replica is started with: a change of the rest changes nothing."""
        return self.model_copy(update={"previous": ""})


class MeshFile(BaseModel):
    """The whole file; `digest` is of its bytes, empty if there is none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dapps: dict[str, Entry]
    digest: str = ""

    @field_validator("dapps", mode="before")
    @classmethod
    def _empty_entries(cls, raw: object) -> object:
        """`name:` alone is a DApp with nothing special about it."""
        return {name: {} if value is None else value for name, value in raw.items()} if isinstance(raw, dict) else raw

    @field_validator("dapps")
    @classmethod
    def _named(cls, dapps: dict[str, Entry]) -> dict[str, Entry]:
        for name in dapps:
            if not NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name of a DApp: lower-case letters, digits, - and _")
        return dapps

    @field_validator("dapps")
    @classmethod
    def _one_version_each(cls, dapps: dict[str, Entry]) -> dict[str, Entry]:
        seen: dict[str, str] = {}
        for entry in dapps.values():
            distribution = entry.package.partition("/")[0]
            if entry.package and seen.setdefault(distribution, entry.package) != entry.package:
                raise ValueError(f"two versions of {distribution}: all DApps of a package are of one")
        return dapps

    @property
    def enabled(self) -> dict[str, Entry]:
        """Those that are to be served."""
        return {name: entry for name, entry in self.dapps.items() if entry.enabled}


def read(settings: Settings) -> MeshFile:
    """The mesh file of a data folder, or what the settings say if there is none.

    Raises:
        StartError: it cannot be read; the message names the line and what may stand there.
    """
    try:
        content = (settings.home / FILE).read_bytes()
    except FileNotFoundError:
        names = sorted(settings.trusted_dapps | settings.dapps)
        return MeshFile(dapps={name: Entry(trusted=name in settings.trusted_dapps) for name in names})
    return parse(content)


def digest(settings: Settings) -> str:
    """SHA-256 of the mesh file, in hex; empty if there is none."""
    try:
        return hashlib.sha256((settings.home / FILE).read_bytes()).hexdigest()
    except FileNotFoundError:
        return ""


def parse(content: bytes) -> MeshFile:
    """As `read`, of the file's bytes."""
    try:
        raw = yaml.safe_load(content)
        tree = yaml.compose(content, yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        raise StartError(f"{FILE}{f', line {mark.line + 1}' if mark else ''}: this is no YAML") from error
    if not isinstance(raw, dict) or "digest" in raw:
        raise StartError(f"{FILE}: it is a mapping with the key `dapps` alone")
    try:
        return MeshFile.model_validate(raw | {"digest": hashlib.sha256(content).hexdigest()})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        fault = f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}"
        raise StartError(
            f"{FILE}, line {_line(tree, first['loc'])}: {fault}; docs/operate.md says what it holds"
        ) from None


def change(settings: Settings, name: str, **values: Any) -> None:
    """Sets values of one DApp's entry, None takes one away; everything else in the file stays as it is written.

    The file is replaced in one step, so a mesh never reads half of it. Nothing is written that `read` would refuse.

    Raises:
        StartError: as `read`.
    """
    path = settings.home / FILE
    editor = YAML()
    editor.width = 120
    tree = editor.load(path.read_bytes()) if path.exists() else _first(settings, editor)
    parse(_text(editor, tree))
    entry = tree["dapps"].get(name)
    if entry is None:
        entry = tree["dapps"][name] = CommentedMap()
    for key, value in values.items():
        if value is None:
            entry.pop(key, None)
        else:
            entry[key] = value
    text = _text(editor, tree)
    parse(text)
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    private_files.replace(path, text)


def _first(settings: Settings, editor: YAML) -> Any:
    named = "".join(f"  {name}: {{trusted: true}}\n" for name in sorted(settings.trusted_dapps))
    return editor.load(f"{HEADER}dapps:\n{named}" if named else f"{HEADER}dapps: {{}}\n")


def _text(editor: YAML, tree: Any) -> bytes:
    written = StringIO()
    editor.dump(tree, written)
    return written.getvalue().encode()


def _line(node: Any, path: tuple[int | str, ...]) -> int:
    """The line of the innermost key of a path that stands in the file."""
    line = node.start_mark.line
    for part in path:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        pair = next(((key, value) for key, value in pairs if key.value == str(part)), None)
        if pair is None:
            break
        line, node = pair[0].start_mark.line, pair[1]
    return int(line) + 1
