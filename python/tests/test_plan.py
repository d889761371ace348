"""Plans, estimates and comparisons as typed objects."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path

import autodist
import pytest
from conftest import JOB


def test_a_plan_has_the_fields_of_its_document(plan: autodist.Plan) -> None:
    estimate = plan.raw["estimate"]
    assert plan.fits and plan.devices == 8 and plan.strategy.devices == 8
    assert plan.step_time_s == estimate["step_time_s"] > 0
    assert plan.step_time_spread_s == estimate["step_time_spread_s"] > 0
    assert plan.tokens_per_s == pytest.approx(64 * 8192 / plan.step_time_s)
    assert plan.memory.peak_bytes == sum(plan.memory.raw.values())
    assert sum(plan.cost.values()) == pytest.approx(plan.step_time_s)
    assert len(plan.alternatives) == 2
    # A faster one is not recommended for a reason: it is less simple, or may run out of memory.
    for one in plan.alternatives:
        assert ("faster" in one.reason) == (one.step_time_s < plan.step_time_s), one.reason
    assert plan.training is None and plan.given is None
    assert any("megatron-core" in note for note in plan.notes)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.fits = False  # type: ignore[misc]


def test_labels_are_those_of_the_command(plan: autodist.Plan) -> None:
    big = autodist.plan(model="llama3-70b", cluster="4x8xh100-80gb-sxm@8x400gbps", global_batch=128, seq_len=8192)
    for one in (plan, big):
        told = str(one.explain())
        for candidate in (one, *one.alternatives):
            assert candidate.strategy.label in told
        assert repr(one.explain()) == told


def test_tokens_and_prices_give_days_and_money() -> None:
    plan = autodist.plan(**JOB, tokens=1e12, price={"h100-80gb-sxm": 2.5})
    training = plan.training
    assert training is not None and training.tokens == 10**12
    assert training.steps == -(-(10**12) // (64 * 8192))
    assert training.time_s == pytest.approx(training.steps * plan.step_time_s)
    assert training.days == pytest.approx(training.time_s / 86400)
    assert training.cost_usd == pytest.approx(2.5 * training.device_hours)


def test_models_clusters_and_jobs_may_be_dicts(plan: autodist.Plan) -> None:
    again = autodist.plan(model=plan.model, cluster=plan.cluster, job=plan.job, top=3)
    assert again.strategy == plan.strategy and again.step_time_s == plan.step_time_s
    small = autodist.plan(**{**JOB, "model": {**plan.model, "layers": 16}})
    assert small.step_time_s < plan.step_time_s


def test_an_estimate_that_does_not_fit_says_so() -> None:
    fits = autodist.estimate(**JOB, tp=4, dp=2, sp=True)
    assert fits.fits and (fits.strategy.tensor, fits.strategy.data) == (4, 2)
    large = autodist.estimate(model="llama3-70b", cluster="1x8xh100-80gb-sxm", global_batch=8, seq_len=8192, tp=8)
    assert not large.fits and "does NOT fit" in large._repr_html_()


def test_a_trainers_file_is_compared_with_the_plan(tmp_path: Path, plan: autodist.Plan) -> None:
    exported = plan.export("megatron", tmp_path / "out")
    (file,) = exported.files
    assert file.is_file() and "learning_rate.peak" in exported.not_given
    cluster = JOB["cluster"]
    beside = autodist.plan(from_=("megatron", file), cluster=cluster)
    assert beside.given is not None and beside.given.fits
    assert beside.given.plan.strategy.tensor == plan.strategy.tensor


def test_a_trainers_configuration_may_be_a_dict() -> None:
    config = {"train_batch_size": 64, "train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": 0}}
    beside = autodist.plan(
        from_=("deepspeed", config), model="llama2-13b", cluster="1x8xa100-80gb-sxm", seq_len=4096, precision="bf16"
    )
    given = beside.given
    assert given is not None and not given.fits and given.missing_bytes > 0
    assert given.variants and given.variants[0].changes[0].setting == "zero"
    assert all(one.plan.memory.peak_bytes < given.plan.memory.peak_bytes for one in given.variants)
    assert str(given.variants[0].changes[0]).startswith("zero 0 -> ")


def test_saved_plans_are_read_back(tmp_path: Path, plan: autodist.Plan) -> None:
    again = autodist.load(plan.save(tmp_path / "plan.json"))
    assert again == plan
    page = again.report(tmp_path / "report")
    assert page.is_file() and page.parent == tmp_path / "report"


def test_fields_of_newer_documents_are_kept(tmp_path: Path, plan: autodist.Plan) -> None:
    newer = {**plan.raw, "carbon_kg": 3, "estimate": {**plan.raw["estimate"], "energy_j": 7}}
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(newer))
    read = autodist.load(path)
    assert read.raw["carbon_kg"] == 3 and read.raw["estimate"]["energy_j"] == 7
    assert json.loads(read.save(tmp_path / "again.json").read_text()) == newer


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": 2}', '{"schema_version": 1, "strategy": {}}'])
def test_what_is_no_plan_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(autodist.Failed) as refused:
        autodist.load(path)
    assert refused.value.hint


def test_clusters_are_compared() -> None:
    compared = autodist.compare(
        ["1x8xb200-180gb-sxm", "1x8xh100-80gb-sxm"],
        model="llama3-8b",
        global_batch=64,
        seq_len=8192,
        tokens="1T",
        price={"b200-180gb-sxm": 4, "h100-80gb-sxm": 2.5},
    )
    assert [one.device for one in compared.clusters] == ["b200-180gb-sxm", "h100-80gb-sxm"]
    assert compared.fastest.device == "b200-180gb-sxm"
    (faster,) = compared.faster
    assert faster.times_low < faster.times < faster.times_high and faster.times > 1
    assert faster.is_clear == (faster.times_low > 1)
    cheapest = compared.cheapest
    assert cheapest is not None and cheapest.cluster == compared.cheaper[0].cluster
    best = cheapest.best
    assert best is not None and best.training is not None and best.training.cost_usd is not None
    assert "b200-180gb-sxm" in compared._repr_html_()
    assert not any("used" in note for note in compared.notes)
    # The same plan as by itself.
    alone = autodist.plan(**JOB)
    other = compared.clusters[1].best
    assert other is not None and other.step_time_s == pytest.approx(alone.step_time_s)


def test_a_card_is_offline_and_escapes_everything(plan: autodist.Plan) -> None:
    raw = json.loads(json.dumps(plan.raw))
    raw["model"]["name"] = "<script>alert(1)</script>"
    raw["alternatives"][0]["reason"] = 'a "quoted" <b>reason</b>'
    card = autodist.Plan.of(raw)._repr_html_()
    assert "<script" not in card and "<b>reason" not in card and "&lt;script&gt;" in card
    assert "http" not in card and "src=" not in card and "url(" not in card
    assert plan.strategy.label in card and all(one.strategy.label in card for one in plan.alternatives)
    # No colour but the notebook's own.
    assert "#" not in card.replace("&#", "") and "background:white" not in card


def test_tables_need_pandas(plan: autodist.Plan) -> None:
    try:
        import pandas  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match=r"autodist\[pandas\]"):
            plan.to_frame()
        return
    table = plan.to_frame()
    assert list(table["step_time_s"]) == [plan.step_time_s, *(one.step_time_s for one in plan.alternatives)]
    assert {"tensor", "compute_s", "reason", "peak_memory_bytes"} <= set(table.columns)


def test_warnings_of_the_command_are_pythons(fake: object, plan: autodist.Plan, tmp_path: Path) -> None:
    path = plan.save(tmp_path / "plan.json")
    fake(f"echo 'warning: a wide interval' >&2; cat {path}")  # type: ignore[operator]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        autodist.plan(**JOB)
    assert [str(one.message) for one in caught] == ["a wide interval"]


def test_numbers_of_cards_have_as_many_digits_as_they_deserve() -> None:
    from autodist import _html

    assert [_html.time(value) for value in (134.49, 7.0249, 0.0152, 2e-5)] == ["134 s", "7.02 s", "15.2 ms", "20.0 µs"]
    assert [_html.size(value) for value in (0, 999, 81847559598, 2**50)] == ["0 B", "999 B", "76.2 GiB", "1,024 TiB"]
    assert [_html.rounded(value, 3) for value in (598432.7, 1234.0, 2.5)] == ["598,000", "1,230", "2.50"]
