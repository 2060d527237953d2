import os

import pytest

from esc_arch.errors import UserError
from esc_arch.prepare.parallel import run_jobs


def square(number: int) -> int:
    if number == 3:
        raise UserError("three is not allowed")
    if number == 13:
        os._exit(1)
    return number * number


@pytest.mark.parametrize("workers", [1, 2])
def test_every_job_is_answered_once_and_errors_do_not_stop_the_others(workers):
    answers = dict(run_jobs(square, range(8), 8, "squares", workers))
    assert str(answers.pop(3)) == "three is not allowed"
    assert answers == {number: number * number for number in (0, 1, 2, 4, 5, 6, 7)}


def test_jobs_are_taken_as_they_are_needed():
    taken = []

    def jobs():
        for number in range(20, 120):
            taken.append(number)
            yield number

    outcomes = run_jobs(square, jobs(), 100, "squares", 2)
    next(outcomes)
    assert len(taken) <= 8
    outcomes.close()


def test_a_killed_worker_ends_the_run_with_advice():
    with pytest.raises(UserError, match="--workers 2: a worker process was killed"):
        list(run_jobs(square, [1, 13], 2, "squares", 2))


def test_at_least_one_worker_is_needed():
    with pytest.raises(UserError, match="--workers 0: at least 1"):
        list(run_jobs(square, [1], 1, "squares", 0))


def test_progress_shows_rate_and_remaining_time(capsys):
    list(run_jobs(square, range(3), 3, "squares", 1))
    bar = capsys.readouterr().err
    assert "squares: 100%" in bar
    assert "image/s" in bar or "s/image" in bar
