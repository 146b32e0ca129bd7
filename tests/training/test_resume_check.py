"""A resumed run is compatible with its checkpoint."""

from dataclasses import replace

import pytest
import tiny_run
from speech_cuts import TEXTS

from icefall_pathways.data.tokenizer import train_tokenizer
from icefall_pathways.launch.ranks import Rank
from icefall_pathways.models.transducer import build_model
from icefall_pathways.training import runs
from icefall_pathways.training.config import JointPruningConfig
from icefall_pathways.training.resume_check import check_resumable


@pytest.fixture(scope="module")
def dense(corpus, tmp_path_factory):
    config = tiny_run.config(corpus, tmp_path_factory.mktemp("exp") / "dense", "en fr", num_updates=2)
    runs.train(config)
    return config


def make_masks(path, languages, seed):
    model = build_model(replace(tiny_run.MODEL, ctc_head=True), 20)
    tiny_run.save_random_masks(model, path, languages, seed)
    return path


@pytest.fixture(scope="module")
def pathways(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exp")
    masks = make_masks(folder / "initial.safetensors", ["en", "fr"], 1)
    config = tiny_run.config(corpus, folder / "pathways", "en fr", num_updates=2, masks=masks)
    runs.train(config)
    return config


def changed(config, data=None, model=None, pruning=None, **training):
    """Change options of a run, and train longer, so that the resumed run has updates left."""
    return replace(
        config,
        training=replace(config.training, **{"num_updates": 4} | training),
        data=replace(config.data, **data or {}),
        model=replace(config.model, **model or {}),
        pruning=pruning or config.pruning,
    )


@pytest.mark.parametrize("languages", ["fr en", "en"])
def test_languages_with_masks_must_keep_their_order(pathways, languages):
    """In another order each language would resume with the mask of another one."""
    masks = pathways.training.exp_dir / "masks.safetensors"
    before = masks.read_bytes()
    with pytest.raises(ValueError, match="did not start with these masks"):
        runs.train(changed(pathways, data={"languages": languages}))
    assert masks.read_bytes() == before


def test_trainer_compares_languages_with_the_checkpoint(pathways):
    trainer = tiny_run.make_trainer(changed(pathways, data={"languages": "fr en"}, masks=None))
    with pytest.raises(ValueError, match=r"languages=en fr, this one has languages=fr en: .*\(--exp-root of run.sh"):
        trainer.run()


def test_other_masks_are_rejected(pathways, tmp_path):
    other = make_masks(tmp_path / "masks.safetensors", ["en", "fr"], 2)
    masks = pathways.training.exp_dir / "masks.safetensors"
    before = masks.read_bytes()
    with pytest.raises(ValueError, match="did not start with these masks"):
        runs.train(changed(pathways, masks=other))
    assert masks.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"languages": "en fr it"}}, "languages=en fr, this one has languages=en fr it"),
        ({"pruning": JointPruningConfig("adaptive", prune_every=1, prune_end=3)}, "masked=False"),
        ({"model": {"encoder_dim": "32"}}, r"of another architecture \(.*--encoder-dim 32 \(was 16\)"),
    ],
)
def test_incompatible_changes_are_rejected(dense, changes, message):
    with pytest.raises(ValueError, match=message):
        runs.train(changed(dense, **changes))


def test_other_tokens_are_rejected_even_if_their_number_is_the_same(corpus, dense, tmp_path):
    train_tokenizer([text[::-1] for text in TEXTS.values()], 20, tmp_path)
    other = {"bpe_model": tmp_path / "bpe.model"}
    with pytest.raises(ValueError, match="hash of --bpe-model="):
        runs.train(changed(dense, **other))
    with pytest.raises(ValueError, match=r"trained with tokens other than .*--reinit-vocab 1"):
        runs.train(changed(dense, **other, exp_dir=tmp_path / "new", init_from=dense.training.exp_dir))


def test_compatible_changes_are_reported(dense, tmp_path, capsys):
    config = changed(dense, exp_dir=tmp_path / "exp", num_updates=2)
    runs.train(config)
    runs.train(changed(config, num_updates=2, log_interval=1, keep_last_k=5))
    assert "warning" not in capsys.readouterr().out
    runs.train(changed(config, {"max_duration": 3.0}, num_updates=3, seed=7, allow_new_batch_size=True))
    printed = capsys.readouterr().out
    assert "warning: resuming with different options or data: --num-updates 3 (was 2)" in printed
    for change in ("--seed 7 (was 42)", "--max-duration 3.0 (was 6.0)", "updates per epoch (were "):
        assert change in printed


class RankWithoutSharedFolder(Rank):
    """One of two ranks; only the other one finds a checkpoint."""

    def gather(self, value):
        return [value, 1000]


def test_ranks_that_resume_from_different_updates_are_rejected(corpus, tmp_path):
    trainer = tiny_run.make_trainer(tiny_run.config(corpus, tmp_path), RankWithoutSharedFolder())
    with pytest.raises(ValueError, match=r"resume from different updates \(0, 1000\)"):
        trainer.run()


def description(training, world_size=1, accum_grad=1, max_duration=200.0):
    data = {"languages": ["it"], "max_duration": max_duration}
    config = {"data": data, "training": training, "pruning": {"prune_method": "none"}}
    counts = {"world_size": world_size, "accum_grad": accum_grad, "vocab_size": 20, "updates_per_epoch": 5}
    return {"masks_header": {}, "config": config} | counts


@pytest.mark.parametrize(("world_size", "accum_grad"), [(64, 1), (8, 8), (1, 64)])
def test_number_of_ranks_may_change_if_the_batches_do_not(tmp_path, world_size, accum_grad):
    current = description({}, world_size, accum_grad)
    assert check_resumable(current, description({}, 16, 4), {}, {}, tmp_path) == []


@pytest.mark.parametrize(
    ("batch_size", "advice"),
    [
        ((2, 1), "use --accum-grad 4 and --max-duration 200"),
        ((8, 1, 50.0), "use --accum-grad 1 and --max-duration 200"),
        ((3, 1), "use another --world-size, 8 or a divisor of it, and --max-duration 200"),
    ],
)
def test_other_batch_size_needs_permission(tmp_path, batch_size, advice):
    current, stored = description({}, *batch_size), description({}, 4, 2)
    with pytest.raises(ValueError, match=rf"holds a run with 8 batches .* {advice} .*--allow-new-batch-size 1"):
        check_resumable(current, stored, {}, {}, tmp_path)
    assert check_resumable(current, stored, {}, {}, tmp_path, allow_new_batch_size=True)


def test_languages_stored_as_strings_are_compared_as_codes(tmp_path):
    current = description({"freeze_languages": ["en", "fr"]})
    assert check_resumable(current, description({"freeze_languages": "en french"}), {}, {}, tmp_path) == []
    with pytest.raises(ValueError, match="freeze_languages=en, this one has freeze_languages=en fr"):
        check_resumable(current, description({"freeze_languages": "en"}), {}, {}, tmp_path)
