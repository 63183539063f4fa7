# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible_collections.stateful.dbops.plugins.module_utils._postgresql.pause_prediction import Measured, predict
from hypothesis import given
from hypothesis import strategies as st

milliseconds = st.floats(0, 100_000)
measurements = st.builds(Measured, milliseconds, milliseconds, milliseconds, st.none() | milliseconds)


@given(measurements, st.integers(1, 60_000), st.booleans())
def test_the_parts_make_the_whole(measured: Measured, limit: int, patroni: bool) -> None:
    prediction = predict(measured, max_pause_ms=limit, drain_limit_ms=0.4 * limit, patroni=patroni)
    assert abs(prediction["pause_ms"] - sum(prediction["parts"].values())) < 1
    assert ("stop" in prediction["parts"]) != patroni


@given(measurements, st.integers(1, 60_000))
def test_without_poolers_nobody_waits_for_transactions(measured: Measured, limit: int) -> None:
    bare = Measured(measured.oldest_transaction, measured.checkpoint, measured.replay, None)
    parts = predict(bare, max_pause_ms=limit, drain_limit_ms=0.4 * limit)["parts"]
    assert (parts["pause_poolers"], parts["resume_poolers"]) == (0, 0)


def test_what_exceeds() -> None:
    words = {"max_pause_ms": 1000, "drain_limit_ms": 400.0}
    assert predict(Measured(399, 10, 10, 1), **words)["exceeds"] == ""  # type: ignore[arg-type]
    drain = predict(Measured(401, 10, 10, 1), **words)["exceeds"]  # type: ignore[arg-type]
    assert drain == "a transaction of 401 ms was under way, and poolers get 400 ms of max_pause_ms to drain"
    slow = predict(Measured(1, 1000, 10, None), **words)["exceeds"]  # type: ignore[arg-type]
    assert slow == "1070 ms until the promotion are more than max_pause_ms = 1000"
    # What comes after the promotion is beyond the limit: nothing is rolled back then.
    assert predict(Measured(1, 800, 10, 20), **words)["exceeds"] == ""  # type: ignore[arg-type]
