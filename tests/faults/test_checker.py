"""The checker is checked: what is right passes, and each wrong is caught and named."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.faults.checker import (
    BEHIND_ENDING,
    CHANGED,
    DOUBLED,
    ENDING,
    HOLE,
    LOST,
    NOTICE,
    REFUSED,
    REORDERED,
    SHOWN,
    SILENT,
    STRANDED,
    TOLD,
    VANISHED,
    Away,
    Closed,
    Connected,
    Entry,
    FinalStream,
    Held,
    History,
    Kill,
    Loss,
    Notice,
    Received,
    Refused,
    Run,
    Told,
    Transcript,
    Verdict,
    check,
)

T0 = 1_700_000_000.0
"""When the stream was created; event N is written 0.1 s × N later, a new pen's 10 s after that."""

NEVER = float("inf")
CLEAN = ["1 queued", "2 start", "3 text_delta", "4 text_delta", "5 text_delta", "6 done"]
TAKEN_OVER = ["1 queued", "2 start", "3 text_delta", "1000001 restart", "1000002 start", "1000003 done"]

Shown = list[Connected | Received | Notice | Closed | Refused]


def when(id: int) -> float:
    block, place = divmod(id - 1, 1_000_000)
    return T0 + 10 * block + 0.1 * place


def entry(event: str) -> Entry:
    id, kind, *data = event.split()
    return Entry(int(id), kind, data[0] if data else f'{{"text":"{id}"}}', round(when(int(id)) * 1000))


def stream(events: list[str], state: str | None = "", tail: int | None = None) -> FinalStream:
    entries = [entry(event) for event in events]
    last = entries[-1] if entries else None
    if state == "":
        state = last.kind if last else None
    return FinalStream("s", entries, state, tail or (last.id if last else None))


def received(event: str) -> Received:
    id, kind, data, _ = entry(event)
    return Received(when(id) + 0.01, id, kind, data)


def viewer(*shown: str | Notice | Closed | Refused | Connected, name: str = "v", finished: bool = True) -> Transcript:
    """Strings are events, "|" a cut with a resume from the last one."""
    items: Shown = [Connected(T0, None)]
    last: Received | None = None
    for item in shown:
        if item == "|":
            items += [Closed(last.at if last else T0, False), Connected(last.at if last else T0, last and last.id)]
        elif isinstance(item, str):
            last = received(item)
            items.append(last)
        else:
            items.append(item)
    return Transcript(name, "s", items, finished)


def judge(log: list[str] | FinalStream, *viewers: Transcript, **history: object) -> Verdict:
    final = log if isinstance(log, FinalStream) else stream(log)
    told: Sequence[Told] = history.pop("told", ())  # type: ignore[assignment]
    history.setdefault("created", {"s": T0})
    return check(Run([final], list(viewers), list(told), History(**history)))  # type: ignore[arg-type]


def rules(verdict: Verdict) -> list[str]:
    return [finding.rule for finding in verdict.findings]


def lost_after(id: int) -> Loss:
    """Redis lost everything that was written after this event, 1 s after it; it was back 1 s later."""
    return Loss(when(id) + 1.0, when(id) + 2.0, when(id) + 0.05)


# -- what is right ---------------------------------------------------------------------------------------


def test_a_clean_transcript_passes() -> None:
    verdict = judge(CLEAN, viewer(*CLEAN), viewer(*CLEAN, name="w"))
    assert verdict.findings == []
    assert not verdict.admitted


def test_a_cut_and_a_resume_anywhere_pass() -> None:
    assert judge(CLEAN, viewer("|", *CLEAN[:2], "|", "|", *CLEAN[2:5], "|", CLEAN[5])).findings == []


def test_a_takeovers_jump_passes() -> None:
    assert judge(TAKEN_OVER, viewer(*TAKEN_OVER)).findings == []


def test_a_seizures_jump_passes() -> None:
    log = [*CLEAN[:3], "4000001 cancelled"]
    assert judge(log, viewer(*log), told=[Told(T0, "s", "cancelled", 4_000_001, 3)]).findings == []


def test_a_first_claim_jumps_only_under_another_boot_of_redis_or_if_it_may_be_the_second() -> None:
    log = ["1 queued", "3000001 start", "3000002 done"]
    assert judge(log, viewer(*log), restarts=[T0 + 1]).findings == []
    assert judge(log, viewer(*log), asked_again={"s"}).findings == []
    assert rules(judge(log, viewer(*log))) == [HOLE]


def test_204_after_the_ending_passes() -> None:
    assert judge(CLEAN, viewer(*CLEAN, "|", Refused(T0 + 9, 204))).findings == []


# -- each wrong is caught --------------------------------------------------------------------------------


def test_a_lost_event_is_caught() -> None:
    verdict = judge(CLEAN, viewer(*CLEAN[:2], *CLEAN[4:]))
    assert [str(finding) for finding in verdict.findings] == [
        "lost: stream s, viewer v: it never got 3-4, and was not told"
    ]
    assert verdict.counts[LOST] == 2


def test_an_event_lost_at_a_resume_is_caught() -> None:
    assert rules(judge(CLEAN, viewer(*CLEAN[:3], "|", *CLEAN[4:]))) == [LOST]


def test_an_event_lost_before_the_first_is_caught() -> None:
    assert rules(judge(CLEAN, viewer(*CLEAN[1:]))) == [LOST]


def test_a_doubled_event_is_caught() -> None:
    verdict = judge(CLEAN, viewer(*CLEAN[:3], "|", *CLEAN[2:]))
    assert rules(verdict) == [DOUBLED]
    assert "event 3 came twice" in verdict.findings[0].what


def test_a_reordered_event_is_caught() -> None:
    assert rules(judge(CLEAN, viewer(*CLEAN[:2], CLEAN[3], CLEAN[2], *CLEAN[4:]))) == [REORDERED]


def test_a_second_ending_is_caught() -> None:
    log = [*CLEAN, "1000001 cancelled"]
    verdict = judge(log, viewer(*CLEAN))
    assert ENDING in rules(verdict)
    assert "a second ending: [6, 1000001]" in verdict.findings[0].what


def test_a_second_ending_that_only_a_viewer_saw_is_caught() -> None:
    log = [*CLEAN[:5], "1000001 cancelled"]
    assert rules(judge(log, viewer(*CLEAN), viewer(*log, name="w"))) == [LOST]


def test_an_event_after_the_ending_is_caught() -> None:
    log = [*CLEAN, "7 text_delta"]
    assert ENDING in rules(judge(log, viewer(*CLEAN)))
    assert ENDING in rules(judge(CLEAN, viewer(*CLEAN, "7 text_delta")))


def test_no_ending_is_caught() -> None:
    verdict = judge(stream(CLEAN[:5], state="running"), viewer(*CLEAN[:5], finished=False))
    assert rules(verdict) == [ENDING, STRANDED]


def test_a_state_that_disagrees_with_the_ending_is_caught() -> None:
    assert rules(judge(stream(CLEAN, state="cancelled"), viewer(*CLEAN))) == [ENDING]


def test_a_tail_that_disagrees_with_the_ending_is_caught() -> None:
    assert rules(judge(stream(CLEAN, tail=5), viewer(*CLEAN))) == [ENDING]


def test_an_id_that_changed_its_meaning_is_caught() -> None:
    assert rules(judge(CLEAN, viewer(*CLEAN[:3], '4 text_delta {"text":"else"}', *CLEAN[4:]))) == [CHANGED]


def test_an_id_that_means_different_things_to_two_viewers_is_caught_also_when_it_is_gone() -> None:
    ghosts = [viewer(*CLEAN[:3], f'4 text_delta {{"text":"{n}"}}', name=str(n), finished=False) for n in (1, 2)]
    assert CHANGED in rules(judge(stream([], state=None), *ghosts))


@pytest.mark.parametrize(
    "jump",
    ["6 done", "1000002 restart", "1000001 text_delta", "1000001 start"],
    ids=lambda jump: jump.replace(" ", "-"),
)
def test_a_hole_that_is_no_new_pens_is_caught(jump: str) -> None:
    log = [*CLEAN[:4], jump, *([] if jump.endswith("done") else ["3000001 done"])]
    assert HOLE in rules(judge(log, viewer(*log)))


def test_a_log_without_its_first_event_is_caught() -> None:
    assert HOLE in rules(judge(CLEAN[1:], viewer(*CLEAN[1:])))


def test_an_answer_that_ends_properly_before_the_ending_is_caught() -> None:
    assert rules(judge(CLEAN, viewer(*CLEAN[:3], Closed(T0, True), finished=False))) == [STRANDED, STRANDED]


def test_204_before_the_ending_is_caught() -> None:
    assert rules(judge(CLEAN, viewer(*CLEAN[:3], "|", Refused(T0, 204)))) == [STRANDED]


def test_an_answer_that_ends_an_eventsource_is_caught() -> None:
    assert rules(judge(CLEAN, viewer(*CLEAN[:3], "|", Refused(T0, 503), "|", *CLEAN[3:]))) == [REFUSED]


def test_a_stream_that_vanished_without_a_loss_is_caught() -> None:
    assert rules(judge(stream([], state=None), viewer(*CLEAN[:3], finished=False))) == [VANISHED]


def test_a_cancel_that_was_answered_with_another_ending_is_caught() -> None:
    assert rules(judge(CLEAN, viewer(*CLEAN), told=[Told(T0, "s", "cancelled", 1_000_001, 5)])) == [TOLD]


def test_a_cancel_that_was_answered_with_another_place_is_caught() -> None:
    log = [*CLEAN[:3], "4000001 cancelled"]
    assert rules(judge(log, viewer(*log), told=[Told(T0, "s", "cancelled", 4_000_001, 2)])) == [TOLD]


def test_a_viewer_that_presents_another_cursor_than_its_own_is_no_witness() -> None:
    with pytest.raises(ValueError, match="no fair viewer"):
        judge(CLEAN, viewer(*CLEAN[:3], Connected(T0, 2)))


# -- what Redis lost -------------------------------------------------------------------------------------

LOST_TAIL = ["1 queued", "2 start", "1000001 restart", "1000002 done"]
SEEN = ["1 queued", "2 start", "3 text_delta", "4 text_delta"]
TOLD_OF_IT = [*SEEN, Notice(T0 + 9, 4, 1_000_001, "log_lost_tail"), *LOST_TAIL[2:]]


def test_a_tail_that_was_lost_together_with_its_writer_is_admitted_and_counted() -> None:
    faults = {"losses": [lost_after(2)], "workers_away": [Away("w", T0 + 1, NEVER)]}
    verdict = judge(LOST_TAIL, viewer(*TOLD_OF_IT), **faults)
    assert verdict.findings == []
    assert verdict.admitted == {"Redis lost it, and a worker, perhaps its writer, had gone": 2}
    verdict = judge(LOST_TAIL, viewer(*TOLD_OF_IT), **faults, held={"s": [Held(T0, "w", 2)]})
    assert verdict.admitted == {"Redis lost it, and its writer had gone": 2}


def test_a_tail_that_was_lost_while_its_writer_lived_is_caught() -> None:
    for away in (
        [],
        [Away("w", T0 + 60, NEVER)],  # it died long after
        [Away("w", T0 + 1, T0 + 4)],  # it stood still for less than a lease
    ):
        assert rules(judge(LOST_TAIL, viewer(*TOLD_OF_IT), losses=[lost_after(2)], workers_away=away)) == [LOST]


def test_only_its_own_writers_death_excuses_a_stream() -> None:
    deaths = [Away("another", T0 + 1, NEVER)]
    held = {"s": [Held(T0, "w", 2)]}
    verdict = judge(LOST_TAIL, viewer(*TOLD_OF_IT), losses=[lost_after(2)], workers_away=deaths, held=held)
    assert rules(verdict) == [LOST]


def test_a_lost_tail_without_a_loss_is_caught() -> None:
    assert rules(judge(LOST_TAIL, viewer(*TOLD_OF_IT), workers_away=[Away("w", T0 + 1, NEVER)])) == [LOST]


def test_a_viewer_that_went_on_from_a_lost_event_without_a_notice_is_caught() -> None:
    untold = viewer(*SEEN, "|", *LOST_TAIL[2:])
    verdict = judge(LOST_TAIL, untold, losses=[lost_after(2)], workers_away=[Away("w", T0 + 1, NEVER)])
    assert rules(verdict) == [NOTICE]


def test_a_viewer_that_was_past_an_event_before_it_was_lost_needs_no_notice() -> None:
    # The stream vanished, and its living writer, the second one, put back its own part.
    loss = Loss(when(1_000_002) + 1, when(1_000_002) + 2, T0 - 0.1)
    shown = viewer(*SEEN, *LOST_TAIL[2:])
    verdict = judge(LOST_TAIL, shown, losses=[loss], workers_away=[Away("w", T0 + 1, NEVER)], created={"s": T0})
    assert verdict.findings == []
    assert verdict.admitted.total() == 2


def test_a_notice_of_a_loss_that_was_none_is_caught() -> None:
    assert rules(judge(CLEAN, viewer(*CLEAN[:3], Notice(T0, 3, 4, "log_lost_tail"), *CLEAN[3:]))) == [NOTICE]


def test_a_notice_excuses_nothing_that_came_before_it() -> None:
    losses, away = [lost_after(2)], [Away("w", T0 + 1, NEVER)]
    shown = viewer("1 queued", *TOLD_OF_IT[2:])
    assert rules(judge(LOST_TAIL, shown, losses=losses, workers_away=away)) == [LOST]


def test_events_written_below_an_ending_that_was_lost_and_put_back_are_caught() -> None:
    # The ending is at T0 + 40 in this log; viewers had it at once, and its writer went on when Redis had lost it.
    log = stream([*CLEAN[:5], "4000001 cancelled"])
    early = Received(when(3) + 0.05, 4_000_001, "cancelled", '{"text":"4000001"}')
    transcript = viewer(*CLEAN[:3])
    transcript.items.append(early)
    verdict = judge(log, transcript, viewer(*CLEAN[:5], "4000001 cancelled", name="w"))
    assert rules(verdict) == [BEHIND_ENDING]
    assert verdict.counts[BEHIND_ENDING] == 2


def test_an_ending_alone_is_right_only_below_a_lost_cursor() -> None:
    losses, away = [lost_after(2)], [Away("w", T0 + 10, NEVER)]
    loss = [Loss(T0 + 10.5, T0 + 11, T0 + 9)]
    assert REORDERED in rules(judge(TAKEN_OVER, viewer(*TAKEN_OVER[:5], "4 done"), losses=losses, workers_away=away))
    log = [*CLEAN[:3], "4 done"]
    shown = viewer(*CLEAN[:3], "1000001 restart", "4 done")
    assert judge(log, shown, losses=loss, workers_away=away).findings == []


def test_a_stream_that_nobody_had_claimed_may_vanish_in_a_loss() -> None:
    losses = [Loss(T0 + 1, T0 + 2, T0 - 1)]
    assert judge(stream([], state=None), viewer("1 queued", finished=False), losses=losses).findings == []
    assert rules(judge(stream([], state=None), viewer(*SEEN, finished=False), losses=losses)) == [VANISHED]


def test_a_tail_whose_writer_was_fenced_by_a_seizure_that_was_lost_too_is_admitted() -> None:
    # Cancelled after 4, and lost with the server that had cancelled it; a sweeper ended it for good.
    loss = Loss(T0 + 1, T0 + 2, when(3) + 0.05)
    cancelled = viewer(*CLEAN[:4])
    cancelled.items.append(Received(T0 + 0.9, 1_000_001, "cancelled", "{}"))
    server = [Away("server", T0 + 1.5, NEVER)]
    verdict = judge([*CLEAN[:3], "2000001 error"], cancelled, losses=[loss], servers_away=server)
    assert verdict.findings == []
    assert verdict.admitted.total() == 2
    assert rules(judge([*CLEAN[:3], "2000001 error"], cancelled, losses=[loss])) == [LOST]


def test_an_ending_that_was_lost_with_its_writer_is_admitted_to_those_who_had_seen_it() -> None:
    loss = [Loss(when(6) + 1, when(6) + 2, when(5) + 0.05)]
    log = [*CLEAN[:5], "1000001 restart", "1000002 done"]
    others = viewer(*log, name="w")
    verdict = judge(log, viewer(*CLEAN), others, losses=loss, workers_away=[Away("w", when(6) + 1, NEVER)])
    assert verdict.findings == []
    assert rules(judge(log, viewer(*CLEAN), others, losses=loss)) == [LOST]


# -- silence ---------------------------------------------------------------------------------------------


def test_silence_is_measured_from_the_kill_to_the_next_pen_without_the_time_that_redis_was_away() -> None:
    late = ["1 queued", "2 start", "3 text_delta", "2000001 restart", "2000002 done"]
    kill = [Kill(T0 + 2, "w", ["s"])]
    verdict = judge(late, viewer(*late), kills=kill)
    assert rules(verdict) == [SILENT]
    assert verdict.longest_silence().own_s == pytest.approx(18)
    verdict = judge(late, viewer(*late), kills=kill, outages=[(T0 + 3, T0 + 8), (T0 + 7, T0 + 8)])
    assert verdict.findings == []
    assert verdict.longest_raw_silence_s() == pytest.approx(18)
    assert verdict.longest_silence().own_s == pytest.approx(18 - 11)  # the outage, and six seconds after it


def test_only_the_stop_of_who_took_over_excuses_a_silence() -> None:
    late = ["1 queued", "2 start", "3 text_delta", "2000001 restart", "2000002 done"]
    kill = [Kill(T0 + 2, "w", ["s"])]
    stops = [Away("heir", T0 + 9, T0 + 18)]
    assert rules(judge(late, viewer(*late), kills=kill, workers_away=stops)) == [SILENT]
    held = {"s": [Held(T0 + 18, "heir", 2_000_001)]}
    assert judge(late, viewer(*late), kills=kill, workers_away=stops, held=held).findings == []


def test_a_worker_that_had_finished_the_stream_leaves_no_silence() -> None:
    assert judge(CLEAN, viewer(*CLEAN), kills=[Kill(T0 + 0.3, "w", ["s"])]).silences == []


# -- what end users see ------------------------------------------------------------------------------------

WITH_INTERNALS = ["1 queued", "2 start", "3 internal.turn", "4 text_delta", "5 internal.usage", "6 done"]
PUBLIC = ["1 queued", "2 start", "4 text_delta", "6 done"]


def public(*shown: str | Notice) -> Transcript:
    transcript = viewer(*shown)
    transcript.is_public = True
    return transcript


def test_a_public_viewer_gets_all_but_what_is_internal() -> None:
    assert judge(WITH_INTERNALS, public(*PUBLIC[:2], "|", *PUBLIC[2:]), viewer(*WITH_INTERNALS)).findings == []
    assert rules(judge(WITH_INTERNALS, public(*PUBLIC[:2], *PUBLIC[3:]))) == [LOST]
    assert SHOWN in rules(judge(WITH_INTERNALS, public(*WITH_INTERNALS)))


def test_a_notice_may_name_what_a_public_viewer_does_not_see_and_has_passed() -> None:
    log = ["1 queued", "2 start", "1000001 restart", "1000002 done"]
    died = {"losses": [lost_after(2)], "workers_away": [Away("w", when(3), NEVER)]}
    told = Notice(when(1_000_001), 3, 1_000_001, "log_lost_tail")
    assert judge(log, public(*log[:2], told, *log[2:]), **died).findings == []
    false = told._replace(requested=1_000_001)
    assert NOTICE in rules(judge(log, public(*log[:2], false, *log[2:]), **died))
