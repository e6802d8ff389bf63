"""The documents of the API as text: moments."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from script_runner.task import Task
from script_runner.web import documents

MOST_MILLISECONDS = int(datetime(9999, 12, 31, tzinfo=UTC).timestamp()) * 1000


@given(milliseconds=st.integers(0, MOST_MILLISECONDS))
def test_a_moment_is_told_by_rfc_3339_to_the_millisecond_in_utc(milliseconds: int) -> None:
    text = documents.summary(Task("id", "", {}, created_at=milliseconds / 1000))["created_at"]
    seconds = datetime.fromisoformat(text).replace(microsecond=0).timestamp()
    assert (round(seconds), int(text[-4:-1])) == divmod(milliseconds, 1000)
    assert text.endswith("Z")
    assert len(text) == len("2030-01-31T06:00:00.000Z")
