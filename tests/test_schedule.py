"""Schedules: the grammar against a slow oracle, and one clear line for everything that is not in it."""

import math
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fadeviz import FadevizError, Schedule, parse_schedule
from fadeviz.storage.schedule import at, every, log_spaced

PAPER = "100:3000:100,320:360:10"


def message(text, last=None):
    """The one line with which ``text`` is refused."""
    with pytest.raises(FadevizError) as caught:
        parse_schedule(text, last)
    line = str(caught.value)
    assert len(line.splitlines()) == 1, line
    return line


class TestGrammar:
    def test_the_papers_schedule(self):
        schedule = parse_schedule(PAPER)
        assert len(schedule) == 36
        assert list(schedule)[:5] == [0, 100, 200, 300, 320]
        assert {100, 320, 330, 340, 350, 360, 3000} <= set(schedule)
        assert schedule.last == 3000
        assert parse_schedule(PAPER, 3000) == schedule

    @pytest.mark.parametrize(
        ("text", "steps"),
        [
            ("0", [0]),
            ("7", [0, 7]),
            ("3,1,3", [0, 1, 3]),
            ("2:5", [0, 2, 3, 4, 5]),
            ("2:8:3", [0, 2, 5, 8]),
            ("2:9:3", [0, 2, 5, 8]),
            ("4:4:9", [0, 4]),
            (" 5 ,\t6:7\n", [0, 5, 6, 7]),
            ("007", [0, 7]),
            ("log:1:1000:4", [0, 1, 10, 100, 1000]),
            ("log:1:4:9,6", [0, 1, 2, 3, 4, 6]),
            ("log:5:5:2", [0, 5]),
        ],
    )
    def test_by_hand(self, text, steps):
        assert list(parse_schedule(text)) == steps

    def test_membership_length_and_last(self):
        schedule = parse_schedule("10:30:10")
        assert [step for step in range(-5, 40) if step in schedule] == [0, 10, 20, 30]
        assert len(schedule) == 4
        assert schedule.last == 30
        assert at([]).last == 0

    def test_the_functions_agree_with_the_text(self):
        assert at([5, 3, 5]) == parse_schedule("3,5")
        assert every(10, 35) == parse_schedule("0:35:10") == Schedule((0, 10, 20, 30))
        assert every(10, 30).last == 30
        assert log_spaced(2, 900, 7) == parse_schedule("log:2:900:7")

    @given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(2, 60))
    def test_log_spacing(self, first, factor, count):
        last = first * factor
        steps = list(log_spaced(first, last, count))[1:]
        exact = [math.exp(math.log(first) + i / (count - 1) * math.log(factor)) for i in range(count)]
        assert steps[0] == first
        assert steps[-1] == last
        for wanted in exact:
            assert min(abs(step - wanted) for step in steps) <= 0.5 + 1e-9 * wanted
        assert len(steps) <= count

    @given(
        st.lists(
            st.tuples(st.integers(0, 500), st.integers(0, 300), st.integers(1, 400), st.integers(0, 2)),
            min_size=1,
            max_size=6,
        ),
        st.sampled_from([",", " , ", ",  "]),
    )
    def test_equals_a_slow_oracle(self, parts, comma):
        texts, wanted = [], {0}
        for first, length, stride, fields in parts:
            last = first + length
            texts.append([f"{first}", f"{first}:{last}", f"{first}:{last}:{stride}"][fields])
            step = first
            while step <= (first if fields == 0 else last):
                wanted.add(step)
                step += stride if fields == 2 else 1
        schedule = parse_schedule(comma.join(texts), max(wanted))
        assert list(schedule) == sorted(wanted)
        assert all((step in schedule) == (step in wanted) for step in range(900))
        assert schedule.last == max(wanted)


class TestErrors:
    @pytest.mark.parametrize("text", ["", " ", ",", " , ,"])
    def test_empty(self, text):
        assert message(text).startswith("schedule is empty. Write steps as N, FIRST:LAST:STRIDE")

    @pytest.mark.parametrize(
        ("text", "part", "field"),
        [
            ("often", "often", "often"),
            ("10,-5", "-5", "-5"),
            ("1.5,3", "1.5", "1.5"),
            ("100,", "", ""),
            ("1:2:", "1:2:", ""),
            ("1e3", "1e3", "1e3"),
            ("+5", "+5", "+5"),
            ("1_000", "1_000", "1_000"),
            ("1 000", "1 000", "1 000"),
            ("٣:٥", "٣:٥", "٣"),
            ("5²", "5²", "5²"),
            ("log:1:many:3", "log:1:many:3", "many"),
            ("LOG:1:9:3", "LOG:1:9:3", "LOG"),
            ("1000000000000", "1000000000000", "1000000000000"),
            ("1\n2", "1\n2", "1\n2"),
        ],
    )
    def test_no_number(self, text, part, field):
        line = message(text)
        assert line.startswith(f"schedule part {part!r}: {field!r} is not a whole number of steps. Write steps as N")

    @pytest.mark.parametrize(
        ("text", "last", "line"),
        [
            ("5,30:10:2", None, "schedule part '30:10:2' runs backwards. Write 10:30:2"),
            ("30:10", None, "schedule part '30:10' runs backwards. Write 10:30:1"),
            ("log:30:10:3", None, "schedule part 'log:30:10:3' runs backwards. Write log:10:30:3"),
            ("1:5:0", None, "schedule part '1:5:0': the stride is 0, it must be 1 or more"),
            ("1:2:3:4", None, "schedule part '1:2:3:4' has 4 fields. Write steps as N, FIRST"),
            ("log", None, "schedule part 'log' has 1 fields. Write steps as N"),
            ("log:1:9", None, "schedule part 'log:1:9' has 3 fields. Write steps as N"),
            ("log:1:9:3:4", None, "schedule part 'log:1:9:3:4' has 5 fields. Write steps as N"),
            ("log:0:9:3", None, "schedule part 'log:0:9:3': log-spaced steps need FIRST >= 1"),
            ("log:1:9:1", None, "schedule part 'log:1:9:1': log-spaced steps need FIRST >= 1 and COUNT"),
            (
                "10,50:150:50",
                100,
                "schedule part '50:150:50' reaches step 150, but the run ends at step 100. Train longer (steps=...) or",
            ),
            ("101", 100, "schedule part '101' reaches step 101, but the run ends at step 100"),
            (
                "1:999999999999:1",
                None,
                "schedule part '1:999999999999:1' names 999999999999 steps, more than 1000000. Use a larger stride",
            ),
        ],
    )
    def test_other_mistakes(self, text, last, line):
        assert message(text, last).startswith(line)

    def test_the_run_may_end_at_the_last_step(self):
        assert parse_schedule("50:150:50", 150).last == 150
        assert parse_schedule("50:149:50", 100).last == 100

    def test_too_many_log_spaced_steps_are_called_too_many(self):
        assert "1000000" in message("log:1:9:1000001")

    @pytest.mark.parametrize("steps", [(), (1, 2), (0, 2, 2), (0, 3, 1)])
    def test_a_schedule_increases_from_zero(self, steps):
        with pytest.raises(FadevizError, match="steps must increase from 0"):
            Schedule(steps)

    def test_functions_refuse_too(self):
        with pytest.raises(FadevizError, match=r"schedule: step -3 is negative"):
            at([4, -3])
        with pytest.raises(FadevizError, match=r"'every\(0, 10\)': the stride is 0"):
            every(0, 10)
        with pytest.raises(FadevizError, match="'log:5:1:3' runs backwards"):
            log_spaced(5, 1, 3)

    def test_every_refuses_absurd_ends(self):
        with pytest.raises(FadevizError, match="Use a larger stride"):
            every(1, 10**30)


def parsed(text, last):
    """The schedule, or the message with which it is refused; any other exception is a failure."""
    try:
        return parse_schedule(text, last)
    except FadevizError as error:
        return str(error)


@settings(deadline=None, max_examples=200)
@given(
    st.one_of(
        st.text(),
        st.text("0123456789:,log- ._\n٣²", max_size=24),
        st.lists(st.integers(-2, 10**13).map(str), max_size=5).map(":".join),
        st.lists(st.integers(-2, 10**13).map(str), max_size=5).map(lambda fields: "log:" + ":".join(fields)),
    ),
    st.none() | st.integers(0, 5000),
)
@example("1:999999999999:1", None)
@example("log:1:999999999999:1000000", 3)
@example("9" * 5000, None)
@example(":" * 5000, None)
def test_any_text_parses_or_is_refused_in_one_line(text, last):
    result = parsed(text, last)
    if isinstance(result, str):
        assert len(result.splitlines()) == 1
    else:
        assert result.steps[0] == 0
        assert last is None or result.last <= last


@pytest.mark.parametrize("text", ["0:999999999999:1", "0:" + "9" * 5000, "log:1:2:999999999999", ",".join("5" * 5000)])
def test_absurd_text_takes_no_time(text):
    start = time.process_time()
    parsed(text, 3)
    assert time.process_time() - start < 0.5
