"""Leaves out each rule of a channel: the scene it protects passes with the rule and fails without it.

A row is one rule: its text in the scripts, its text in Python, and its scene.
The rules of the journal, the settler and the transfers are in `test_rules_off_books.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from channels.metering.channel import Channel, admit, admit_late
from channels.metering.memory_store import MemoryStore
from channels.redis_store.store import RedisStore
from tests.channels import scenes_admission as admission
from tests.channels import scenes_holds as holds
from tests.channels import scenes_memory as memory
from tests.channels.place import Place, Scenario, Swap, cut, in_memory, on_valkey
from tests.channels.twins import Patch


@dataclass(frozen=True)
class Off:
    """A rule left out: in a script, in the rules' Python, or in the client of the server."""

    rule: str
    scene: Scenario
    script: Patch | None = None
    model: Swap | None = None
    client: Swap | None = None


HEAD, HOLD, CHARGE, RELEASE, RENEW, TAIL = map(
    cut, ("_head.lua", "hold.lua", "charge.lua", "release.lua", "renew.lua", "_tail.lua")
)
MIRROR, RESERVE_REFUND, RESTORE, READINESS = map(
    cut, ("mirror.lua", "reserve_refund.lua", "restore.lua", "readiness.lua")
)
STALE = "if tonumber(treasury) < tonumber(redis.call('GET', KEYS[1]) or 0) then return 'stale' end"
OLD_TOKEN = "if token < self._token:"
M = MemoryStore
OFF = "if False:"

RULES = [
    # Admission: keys
    Off(
        "a charged key is answered from its record",
        admission.a_key_runs_once,
        HOLD("    if request then", "    if false then"),
        Swap(M.hold, "if charged := self._charged(account, attempt.call_id):", "if charged := None:"),
    ),
    Off(
        "a running key is in progress",
        admission.a_running_key_is_waited_for,
        HOLD("if other then return reply('in_progress') end", ""),
        Swap(M.hold, "Outcome.ACCEPTED if owner else Outcome.IN_PROGRESS", "Outcome.ACCEPTED"),
    ),
    Off(
        "a charged key is bound to its request",
        admission.a_charged_key_is_one_request,
        HOLD("if request ~= half(digest) then", "if false then"),
        Swap(M._replayed, "if charged.digest != digest:", OFF),
    ),
    Off(
        "a running key is bound to its request",
        admission.a_running_key_is_one_request,
        TAIL("keyed and bound ~= digest and", "false and"),
        Swap(M.hold, "if running and running.digest != attempt.digest:", OFF),
    ),
    Off(
        "a key is kept for ever, its answer is not",
        admission.a_key_outlives_its_answer,
        CHARGE("if keyed then redis.call('HSET', charged_calls, half(call), half(digest)) end", ""),
        Swap(M._charged, "charged.keyed or ", ""),
    ),
    Off(
        "a rebuild reloads charged keys",
        admission.a_key_outlives_the_store,
        RESTORE("for i = 6, #ARGV, 2 do", "for i = 1, 0 do"),
        Swap(M.restore, "in snapshot.charged_calls.items()", "in ()"),
    ),
    # Admission: what pays
    Off(
        "a stock ceiling is exact",
        admission.a_stock_ceiling_is_exact,
        HOLD("elseif maximum ~= required then", "elseif maximum < required then"),
        Swap(admit, "if not keyed and maximum != required:", "if not keyed and maximum < required:"),
    ),
    Off(
        "a stock ceiling is within the balance",
        admission.a_stock_ceiling_is_in_the_balance,
        HOLD(" or (not keyed and maximum > usable)", ""),
        Swap(admit, " or (not keyed and maximum > usable)", ""),
    ),
    Off(
        "a ceiling covers what is asked",
        admission.a_ceiling_covers_its_price,
        HOLD("if required > math.max(c.highest, maximum) then", "if false then"),
        Swap(admit, "if keyed and required > cover:", OFF),
    ),
    Off(
        "the highest ceiling covers, in any order",
        admission.a_ceiling_covers_calls_that_arrive_late,
        HOLD("if required > math.max(c.highest, maximum) then", "if required > maximum then"),
        Swap(admit, "max(channel.highest, maximum)", "maximum"),
    ),
    Off(
        "running calls count",
        admission.a_ceiling_covers_what_runs,
        HOLD("c.charged + c.held + price", "c.charged + price"),
        Swap(admit, "channel.charged + channel.held + price", "channel.charged + price"),
    ),
    Off(
        "the cover is never lowered by a ceiling",
        admission.a_lower_ceiling_takes_nothing_back,
        HOLD("if maximum > c.highest then", "if true then"),
        Swap(M.hold, "highest = max(account.state.highest, request.maximum)", "highest = request.maximum"),
    ),
    Off(
        "the proof is never lowered by a ceiling",
        admission.a_lower_ceiling_takes_nothing_back,
        HOLD("if maximum > c.proof_max then", "if true then"),
        Swap(M.hold, "if request.maximum > account.proof[0]:", "if True:"),
    ),
    Off(
        "a price is within the balance",
        admission.a_price_is_in_the_balance,
        HOLD("required > usable or ", ""),
        Swap(admit, "required > usable or ", ""),
    ),
    Off(
        "exposure is capped",
        admission.exposure_is_capped,
        HOLD("if required - c.claimed > c.cap then", "if false then"),
        Swap(admit, "if required - channel.claimed > exposure_cap:", OFF),
    ),
    Off(
        "a pending withdrawal ends service",
        admission.a_withdrawal_ends_service,
        HOLD("if c.withdrawing == 1 then", "if false then"),
        Swap(admit, "if channel.withdrawing:", OFF),
    ),
    Off(
        "calls that are hung up on are counted",
        admission.free_work_is_bounded,
        HOLD(
            "if not keyed and tonumber(redis.call('GET', abandoned)",
            "if false and tonumber(redis.call('GET', abandoned)",
        ),
        Swap(M.hold, "if waits and", "if False and"),
    ),
    Off(
        "that count ends",
        admission.free_work_is_bounded,
        RELEASE("now_ms + tonumber(window_ms)", "now_ms + 2 * tonumber(window_ms)"),
        Swap(M.hold, " and self._now_ms() < account.abandoned_until_ms", ""),
    ),
    Off(
        "an unknown channel makes no state",
        admission.a_stranger_makes_no_state,
        HEAD("return balance and {", "return {"),
    ),
    Off(
        "no ceiling at 2^53",
        admission.nothing_is_counted_at_2_53,
        HOLD("if maximum >= 2 ^ 53 then", "if false then"),
        Swap(admit, "if maximum >= AMOUNT_LIMIT:", OFF),
    ),
    Off(
        "a correction says what runs",
        admission.a_correction_counts_what_runs,
        HEAD("{outcome, c.charged, c.held,", "{outcome, c.charged, 0,"),
        Swap(M._result, "held=state.held,", "held=0,"),
    ),
    # Stock clients
    Off(
        "a stock client's lost answer is given again",
        admission.a_lost_answer_is_given_again,
        HOLD("if last[1] then return reply('replayed', last[1], last[2]) end", ""),
        Swap(M.hold, "if repeated and", "if False and"),
    ),
    Off(
        "it is looked up before any rule",
        admission.a_lost_answer_is_not_paid_again_where_it_happens_to_fit,
        HOLD("if not keyed and c.last_call", "if not keyed and maximum ~= c.charged + c.held + price and c.last_call"),
        Swap(
            M.hold,
            "and account.last[0] and",
            "and request.maximum != _required(account.state, request.price) and account.last[0] and",
        ),
    ),
    Off(
        "after a loss a stock client is ahead",
        admission.a_stock_client_is_ahead_after_a_loss,
        HOLD("if not (c.lossy == 1 and ahead) then", "if true then"),
        Swap(admit, "if not (channel.lossy and ahead):", "if True:"),
    ),
    Off(
        "what a loss may cost is capped",
        admission.what_a_loss_may_cost_is_capped,
        HOLD(" and maximum <= required + c.cap", ""),
        Swap(admit, "required <= maximum <= required + exposure_cap", "required <= maximum"),
    ),
    Off(
        "a ceiling ahead pays once",
        admission.a_ceiling_ahead_pays_once,
        HOLD("maximum <= c.lossy_max or ", ""),
        Swap(M.hold, "request.maximum <= account.lossy_max or ", ""),
    ),
    Off(
        "ceilings ahead pay one at a time",
        admission.ceilings_ahead_pay_one_at_a_time,
        HOLD(" or redis.call('HEXISTS', holds, c.lossy_call) == 1", ""),
        Swap(M.hold, " or account.lossy_call in account.holds", ""),
    ),
    # Holds
    Off(
        "only its owner releases a hold",
        holds.only_its_owner_releases,
        RELEASE("if not own then", "if not own and not other then"),
        Swap(M._not_owner, " and running.token == attempt.token", ""),
    ),
    Off(
        "only its owner renews a hold",
        holds.only_its_owner_renews,
        RENEW("if not own then", "if not own and not other then"),
        Swap(M._not_owner, " and running.token == attempt.token", ""),
    ),
    Off(
        "a hold stays bound to its request",
        holds.a_renewal_leaves_the_hold_to_its_request,
        HEAD("'|' .. bound .. '|'", "'|' .. digest .. '|'"),
        Swap(M.renew, "self._now_ms() + ttl_ms", "self._now_ms() + ttl_ms; hold.digest = attempt.digest"),
    ),
    Off(
        "without a key too, another attempt takes no hold away",
        holds.a_second_attempt_takes_no_hold_away,
        HOLD("if other then", "if keyed and other then"),
        Swap(M.hold, "if running:", "if running and (attempt.keyed or running.token == attempt.token):"),
    ),
    Off("an ended hold is not renewed", holds.an_ended_hold_is_not_renewed, RENEW("if not own then", "if false then")),
    Off(
        "a renewal renews",
        holds.a_renewed_hold_lives_on,
        RENEW("keep(now_ms + tonumber(ttl_ms))", ""),
        Swap(M.renew, "hold.ends_ms = self._now_ms() + ttl_ms", "pass"),
    ),
    Off(
        "only its owner charges a hold",
        holds.only_its_owner_charges,
        CHARGE("if other or (own", "if (own"),
        Swap(M.charge, "running.token != attempt.token or ", ""),
    ),
    Off(
        "a call is charged once",
        holds.a_charge_is_made_once,
        CHARGE("if request then", "if false then"),
        Swap(M.charge, "if charged := self._charged(account, attempt.call_id):", "if charged := None:"),
    ),
    Off(
        "an answer is given to its own request",
        holds.a_late_owner_gets_no_strangers_answer,
        CHARGE("if request ~= half(digest) then", "if false then"),
        Swap(M._replayed, "if charged.digest != digest:", OFF),
    ),
    Off(
        "a charge is within its hold",
        holds.a_charge_is_within_its_hold,
        CHARGE(" or (own and actual > amount)", ""),
        Swap(M.charge, " or actual > running.amount", ""),
    ),
    Off(
        "no late charge without a key",
        holds.an_unkeyed_call_is_charged_once_for_ever,
        CHARGE("if not keyed or c.withdrawing", "if c.withdrawing"),
        Swap(admit_late, "keyed and fits", "fits"),
    ),
    Off(
        "no late charge in a withdrawal",
        holds.too_late_in_a_withdrawal,
        CHARGE("c.withdrawing == 1 or not fits", "not fits"),
        Swap(admit_late, " and not channel.withdrawing", ""),
    ),
    Off(
        "a late charge counts what runs",
        holds.too_late_for_the_cover,
        CHARGE("c.charged + c.held + actual", "c.charged + actual"),
        Swap(admit_late, "channel.charged + channel.held + actual", "channel.charged + actual"),
    ),
    Off(
        "a late charge is within the cover",
        holds.too_late_for_the_cover,
        CHARGE("math.min(c.highest, c.balance - c.refunding)", "c.balance - c.refunding"),
        Swap(admit_late, "min(channel.highest, channel.usable)", "channel.usable"),
    ),
    Off(
        "a late charge is within the balance",
        holds.too_late_for_the_balance,
        CHARGE("math.min(c.highest, c.balance - c.refunding)", "c.highest"),
        Swap(admit_late, "min(channel.highest, channel.usable)", "channel.highest"),
    ),
    Off(
        "a late charge is within the cap",
        holds.too_late_for_the_cap,
        CHARGE(" and spent - c.claimed <= c.cap", ""),
        Swap(admit_late, " and spent - channel.claimed <= exposure_cap", ""),
    ),
    Off(
        "a late charge that fits is made",
        holds.late_but_covered,
        CHARGE("if not keyed or c.withdrawing == 1 or not fits then", "if true then"),
        Swap(admit_late, "if keyed and fits and", "if False and fits and"),
    ),
    Off(
        "the answer is stored in the charge itself",
        holds.an_answer_is_kept_with_its_charge,
        CHARGE("redis.call('HSET', answer, 'record', record, 'stored', stored)", ""),
        Swap(M.charge, "record, answer, attempt.keyed", "record, b'', attempt.keyed"),
    ),
    Off(
        "a charge whose reply is lost is asked again",
        holds.a_lost_reply_is_asked_again,
        client=Swap(RedisStore.charge, "    except NotReady:\n        pass", "    except NotReady:\n        raise"),
    ),
    Off(
        "a hold ends",
        holds.a_hold_ends_at_its_millisecond,
        HEAD("if ends <= now_ms then", "if ends < now_ms then"),
        Swap(M._account, "hold.ends_ms <= self._now_ms()", "hold.ends_ms < self._now_ms()"),
    ),
    Off(
        "no hold ends early",
        holds.a_hold_ends_at_its_millisecond,
        HEAD("local function keep(ends)\n", "local function keep(ends)\n  ends = ends - 1\n"),
        Swap(M._account, "hold.ends_ms <= self._now_ms()", "hold.ends_ms <= self._now_ms() + 1"),
    ),
    Off(
        "holds are looked through when the first may end",
        holds.a_hold_ends_at_its_millisecond,
        HEAD("c.due, moved = math.min(c.due, ends), true", "moved = true"),
    ),
    Off(
        "and when the next may end",
        holds.a_hold_ends_after_another,
        HEAD("      c.due = math.min(c.due, ends)\n", ""),
    ),
    # Refunds
    Off(
        "a refund under way is off the balance",
        memory.a_refund_is_off_the_balance,
        HOLD("c.balance - c.refunding + extra", "c.balance + extra"),
        Swap(Channel.usable.fget, "self.balance - self.refunding", "self.balance"),
    ),
    Off(
        "it comes back only when its nonce has passed",
        memory.a_time_out_gives_no_refund_back,
        MIRROR(
            "tonumber(refund_nonce) > tonumber(refunding_nonce)", "tonumber(refund_nonce) >= tonumber(refunding_nonce)"
        ),
        Swap(
            M.mirror,
            "snapshot.refund_nonce > account.refunding_nonce",
            "snapshot.refund_nonce >= account.refunding_nonce",
        ),
    ),
    Off(
        "it ends in the step that mirrors it",
        memory.a_refund_is_taken_off_once,
        MIRROR("redis.call('HSET', KEYS[2], 'refunding', '0')", ""),
        Swap(M.mirror, "replace(state, refunding=0), None", "state, None"),
    ),
    Off(
        "one refund at a time",
        memory.one_refund_at_a_time,
        RESERVE_REFUND("if refunding_nonce then", "if false then"),
        Swap(M.reserve_refund, "if account.refunding_nonce is not None:", OFF),
    ),
    Off(
        "no refund of what is held",
        memory.no_refund_of_what_is_held,
        RESERVE_REFUND("if tonumber(held or 0) > 0 then", "if false then"),
        Swap(M.reserve_refund, "if account.state.held:", OFF),
    ),
    Off(
        "a refund knows what is charged",
        memory.a_refund_knows_what_is_charged,
        RESERVE_REFUND("if (charged or '0') ~= expected then", "if false then"),
        Swap(M.reserve_refund, "if account.state.charged != charged:", OFF),
    ),
    Off(
        "no refund of what is charged",
        memory.no_refund_of_what_is_charged,
        RESERVE_REFUND("return 'exceeds_balance'", ""),
        Swap(M.reserve_refund, "if rest < amount:", OFF),
    ),
    Off(
        "no refund in a withdrawal",
        memory.no_refund_in_a_withdrawal,
        RESERVE_REFUND("if withdrawing == '1' then", "if false then"),
        Swap(M.reserve_refund, "if account.state.withdrawing:", OFF),
    ),
    Off(
        "a drained channel begins a new cover",
        memory.a_drained_channel_begins_anew,
        RESERVE_REFUND("'highest', charged or '0', ", ""),
        Swap(M.reserve_refund, "highest=account.state.charged", "highest=account.state.highest"),
    ),
    Off(
        "draining leaves the proof",
        memory.a_drained_channel_begins_anew,
        RESERVE_REFUND("'last_call', ''", "'proof_max', charged or '0'"),
        Swap(M.reserve_refund, "rest == amount:", "rest == amount and not setattr(account, 'proof', (0, b'')):"),
    ),
    # Journal
    Off(
        "a charge is journaled", memory.a_charge_is_journaled, CHARGE("redis.call('XADD', journal, '*',", "select('#',")
    ),
    Off(
        "charges are numbered",
        memory.charges_are_numbered,
        CHARGE("c.seq + 1, true", "1, true"),
        Swap(M.charge, "account.seq += 1", "account.seq = 1"),
    ),
    Off(
        "numbers go on after a loss",
        memory.numbers_go_on_after_a_loss,
        RESTORE("raise('seq', seq)", ""),
        Swap(M.restore, "max(account.seq, snapshot.seq), token", "account.seq, token"),
    ),
    Off(
        "numbers after a loss are of a new incarnation",
        memory.numbers_go_on_after_a_loss,
        RESTORE(", 'inc', treasury)", ")"),
        Swap(M.restore, "max(account.seq, snapshot.seq), token", "max(account.seq, snapshot.seq), account.incarnation"),
    ),
    Off(
        "a journal goes on behind what is drained",
        memory.a_journal_goes_on_behind_what_is_drained,
        READINESS("redis.pcall('XADD', KEYS[3], drained, 'drained', '1')", "false"),
    ),
    # A store that lost memory, and treasuries of before
    Off(
        "only reconciled memory serves",
        memory.only_reconciled_memory_serves,
        HEAD("if redis.call('GET', readiness) ~= RUN then", "if false then"),
        Swap(M._account, "if not self._open:", OFF),
    ),
    Off(
        "memory that was lost again is not opened",
        memory.memory_lost_again_is_not_opened,
        READINESS("if readiness ~= mark then", "if false then"),
        Swap(M.open_for_service, "if not self._open and self._reconciler not in (None, token):", OFF),
    ),
    Off(
        "restoring raises what is charged",
        memory.restoring_raises,
        RESTORE("raise('charged', charged)", ""),
        Swap(M.restore, "max(state.charged, snapshot.charged)", "state.charged"),
    ),
    Off(
        "restoring raises the cover",
        memory.restoring_raises,
        RESTORE("raise('highest', proof_max)", ""),
        Swap(M.restore, "max(state.highest, snapshot.proof_maximum)", "state.highest"),
    ),
    Off(
        "restoring raises the proof",
        memory.restoring_raises,
        RESTORE("if tonumber(proof_max) >", "if false and tonumber(proof_max) >"),
        Swap(M.restore, "if snapshot.proof_maximum > account.proof[0]:", OFF),
    ),
    Off(
        "restoring never lowers an amount or a number",
        memory.restoring_never_lowers,
        RESTORE("if tonumber(value) >", "if true or tonumber(value) >"),
        Swap(M.restore, "max(state.charged, snapshot.charged)", "snapshot.charged"),
    ),
    Off(
        "restoring never lowers the proof",
        memory.restoring_never_lowers,
        RESTORE("if tonumber(proof_max) >", "if true or tonumber(proof_max) >"),
        Swap(M.restore, "if snapshot.proof_maximum > account.proof[0]:", "if True:"),
    ),
    Off(
        "restoring ends holds",
        memory.restoring_ends_holds,
        RESTORE("redis.call('DEL', KEYS[3])", ""),
        Swap(M.restore, "account.holds.clear()", "pass"),
    ),
    Off(
        "a mirror goes forward",
        memory.a_mirror_goes_forward,
        MIRROR("return 'older'", ""),
        Swap(M.mirror, "if snapshot.version < account.version:", OFF),
    ),
    Off(
        "an old treasury mirrors nothing",
        memory.an_old_treasury_mirrors_nothing,
        MIRROR(STALE, ""),
        Swap(M.mirror, OLD_TOKEN, OFF),
    ),
    Off(
        "an old treasury restores nothing",
        memory.an_old_treasury_restores_nothing,
        RESTORE(STALE, ""),
        Swap(M.restore, OLD_TOKEN, OFF),
    ),
    Off(
        "an old treasury refunds nothing",
        memory.an_old_treasury_refunds_nothing,
        RESERVE_REFUND(STALE, ""),
        Swap(M.reserve_refund, OLD_TOKEN, OFF),
    ),
    Off(
        "an old treasury opens nothing",
        memory.an_old_treasury_opens_nothing,
        READINESS(STALE, ""),
        Swap(M._take_over, OLD_TOKEN, OFF),
    ),
]


def cases() -> list[Any]:
    sides = [(row, side, getattr(row, side)) for row in RULES for side in ("script", "model", "client")]
    return [pytest.param(row.scene, change, side, id=f"{row.rule} ({side})") for row, side, change in sides if change]


def played(scene: Scenario, side: str, url: str, make_world: Callable[[], Any], *patches: Patch) -> None:
    """Plays a scene on a fresh store of the kind whose rule is tried."""

    async def play(at: Place) -> None:
        try:
            await scene(at)
        finally:
            if at.server:
                await at.store.close()  # type: ignore[union-attr]

    with in_memory(make_world) if side == "model" else on_valkey(url, make_world, *patches) as at:
        asyncio.run(play(at))


@pytest.mark.parametrize(("scene", "change", "side"), cases())
def test_a_rule_left_out_is_caught(
    scene: Scenario, change: Patch | Swap, side: str, store_url: str, make_world: Callable[[], Any]
) -> None:
    played(scene, side, store_url, make_world)
    with ExitStack() as changes:
        patches = [change] if isinstance(change, Patch) else []
        if isinstance(change, Swap):
            changes.enter_context(change.applied())
        with pytest.raises(AssertionError):
            played(scene, side, store_url, make_world, *patches)
