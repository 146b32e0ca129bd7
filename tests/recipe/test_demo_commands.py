"""Commands of the demo."""

import shlex

import pytest
from recipe_graphs import commands, normalized, read

from icefall_pathways.recipe.environment import SINGLE_THREAD
from icefall_pathways.recipe.experiments import environment
from icefall_pathways.recipe.run import run_graph

pytestmark = pytest.mark.usefixtures("recipe_folder")


DATA = (
    "--manifest-dir data/demo/fbank --languages 'en fr it nl' --bpe-model data/demo/lang_bpe_100/bpe.model "
    "--world-size 1"
)
COMMON = (
    "--max-duration 15 --num-workers 0 --enable-spec-aug 0 --sampling-temperature 2 --lr-schedule linear "
    "--ctc-loss-scale 1.0 --log-interval 25 --valid-interval 500 --valid-wer-cuts 20 --save-every-n 500 --keep-last-k 2"
)
EMFORMER = (
    "--num-encoder-layers 4 --encoder-dim 48 --nhead 4 --dim-feedforward 192 --cnn-module-kernel 15 --decoder-dim 64 "
    "--joiner-dim 64 --subsampling-channels 8,32 --left-context-length 64 --dropout 0"
)
SMALL_ZIPFORMER = "--encoder-dim 24,32,32,32 --encoder-unmasked-dim 24,32,32,32 --feedforward-dim 48"
SPEECH_ONLY = "--silence-perturb 0 --join-perturb 0"
SEARCH = "--lr-warmup 25 --warm-updates 0 --lr-schedule eden --lr-batches 1000000 --lr-epochs 1000000"
DECODE = "--decoding-method modified_beam_search --split test --max-duration 100"
PRUNE = "--sparsity 0.7 --prune-rounds 4"
SYSTEMS = ("dense-continued", "dense-language", "small-dense", "lap", "pathways")
#: Job -> script and options of its command.
DEMO = {
    "corpus": "local/make_mini_corpus.py --corpus-dir download/mini --languages 'en fr it nl' "
    "--hours-per-language 0.4 --hours 'en=1.4 fr=0.9 it=0.4 nl=0.9' --content numbers --dev-utterances 100 "
    "--test-utterances 150 --seed 42 --num-jobs 0",
    "manifests": "local/prepare_manifests.py --corpus mini --corpus-dir download/mini "
    "--output-dir data/demo/manifests --languages 'en fr it nl' --subset train --max-dropped-share 0.1 --num-jobs 0",
    "features": "local/compute_fbank.py --manifest-dir data/demo/manifests --output-dir data/demo/fbank "
    "--languages 'en fr it nl' --store-feats 1 --perturb-speed 0 --max-dropped-share 0.1 --num-jobs 0",
    "tokens": "local/train_bpe.py --cuts-dir data/demo/fbank --languages 'en fr it nl' --vocab-size 100 "
    "--output-dir data/demo/lang_bpe_100 --keep-model 1",
    "index": "local/index_cuts.py --manifest-dir data/demo/fbank --languages 'en fr it nl' "
    "--bpe-model data/demo/lang_bpe_100/bpe.model",
    "dense": f"pruned_transducer_pathways/train.py {DATA} --exp-dir exp/demo/dense --encoder-type emformer "
    f"--num-epochs 30 {EMFORMER} {COMMON} --num-updates 3000 --short-first 1 {SPEECH_ONLY} "
    "--base-lr 0.0015 --lr-warmup 150 --warm-updates 1000",
    "masks-lap": f"pruned_transducer_pathways/prune.py {DATA} --init-from exp/demo/dense --exp-dir exp/demo/masks-lap "
    f"--prune-for all-languages {PRUNE} --updates-per-round 400 {COMMON} {SPEECH_ONLY} --base-lr 0.002 {SEARCH}",
    "masks-pathways": f"pruned_transducer_pathways/prune.py {DATA} --init-from exp/demo/dense "
    f"--exp-dir exp/demo/masks-pathways --prune-for each-language {PRUNE} --updates-per-round 100 {COMMON} "
    f"{SPEECH_ONLY} --base-lr 0.002 {SEARCH}",
    "dense-continued": f"pruned_transducer_pathways/train.py {DATA} --init-from exp/demo/dense "
    f"--exp-dir exp/demo/dense-continued --num-updates 1500 {COMMON} --base-lr 0.004 --lr-warmup 50 --warm-updates 0",
    "dense-language": f"pruned_transducer_pathways/train.py {DATA} --init-from exp/demo/dense "
    f"--exp-dir exp/demo/dense-language --num-updates 1500 {COMMON} --base-lr 0.004 --lr-warmup 50 --warm-updates 0 "
    "--language-input 1",
    "small-dense": f"pruned_transducer_pathways/train.py {DATA} --exp-dir exp/demo/small-dense --encoder-type emformer "
    f"--num-epochs 30 {EMFORMER} {COMMON} --num-updates 3000 --short-first 1 {SPEECH_ONLY} "
    "--base-lr 0.0015 --lr-warmup 150 --warm-updates 1000 "
    "--encoder-dim 24 --dim-feedforward 128 --base-lr 0.004 --num-updates 4500",
    "lap": f"pruned_transducer_pathways/train.py {DATA} --init-from exp/demo/dense --exp-dir exp/demo/lap "
    f"--num-updates 1500 {COMMON} --base-lr 0.004 --lr-warmup 50 --warm-updates 0 "
    "--masks exp/demo/masks-lap/masks.safetensors",
    "pathways": f"pruned_transducer_pathways/train.py {DATA} --init-from exp/demo/dense --exp-dir exp/demo/pathways "
    f"--num-updates 1500 {COMMON} --base-lr 0.004 --lr-warmup 50 --warm-updates 0 "
    "--masks exp/demo/masks-pathways/masks.safetensors",
    **{
        f"decode-{name}": f"pruned_transducer_pathways/decode.py --exp-dir exp/demo/{name} {DECODE}" for name in SYSTEMS
    },
    **{
        f"streaming-decode-{name}": f"pruned_transducer_pathways/streaming_decode.py --exp-dir exp/demo/{name} {DECODE}"
        for name in SYSTEMS
    },
    "report": 'pruned_transducer_pathways/report.py --systems "dense=exp/demo/dense-continued '
    "'dense, language as input=exp/demo/dense-language' 'small dense=exp/demo/small-dense' LAP=exp/demo/lap "
    'pathways=exp/demo/pathways" --output exp/demo/report.html',
}


def test_demo_commands_are_unchanged():
    jobs = run_graph(read("run", "--demo 1"))
    assert commands(jobs) == {name: normalized(line) for name, line in DEMO.items()}
    assert {job.name for job in jobs if job.parallel} == {
        *("masks-lap", "masks-pathways"),
        *SYSTEMS,
    }
    environ = environment(read("run", "--demo 1"))
    assert environ.items() >= SINGLE_THREAD.items()


def test_zipformer_demo_differs_only_in_model_optimizer_and_learning_rates():
    lines = commands(run_graph(read("run", "--demo 1 --encoder-type zipformer")))
    assert lines.keys() == DEMO.keys()
    model = "--zipformer micro --chunk-size 16 --left-context-frames 64"
    schedule = f"{COMMON} --ref-duration 1.5 --optimizer scaled-adam"
    small = ("--encoder-dim 24 --dim-feedforward 128 --base-lr 0.004", SMALL_ZIPFORMER)
    for name, expected in DEMO.items():
        expected = (
            expected.replace(*small)
            .replace("--encoder-type emformer", "--encoder-type zipformer")
            .replace(EMFORMER, model)
        )
        expected = expected.replace(COMMON, schedule)
        for lr in ("0.0015", "0.002", "0.004"):
            expected = expected.replace(f"--base-lr {lr} ", "--base-lr 0.03 ")
        assert lines[name] == normalized(expected)


def test_demo_trains_and_compares_the_selected_systems():
    line = "--demo 1 --systems 'pathways-random small-dense lap-random' --stage 2"
    jobs = {job.name: job for job in run_graph(read("run", line))}
    lines = commands(jobs.values())
    names = ("small-dense", "lap-random", "pathways-random")
    assert list(jobs) == [
        *("masks-lap-random", "masks-pathways-random", *names),
        *(f"decode-{name}" for name in names),
        *(f"streaming-decode-{name}" for name in names),
        "report",
    ]
    for name, prune_for in (("lap-random", "all-languages"), ("pathways-random", "each-language")):
        assert lines[f"masks-{name}"] == normalized(
            f"pruned_transducer_pathways/prune.py {DATA} --init-from exp/demo/dense --exp-dir exp/demo/masks-{name} "
            f"--prune-for {prune_for} --sparsity 0.7 {COMMON} {SPEECH_ONLY} --base-lr 0.002 {SEARCH} "
            "--prune-method random"
        )
        masks = f"--masks exp/demo/masks-{name}/masks.safetensors"
        assert lines[name] == normalized(DEMO["lap"].replace("/lap ", f"/{name} ").split("--masks")[0] + masks)
    assert lines["small-dense"] == normalized(DEMO["small-dense"])
    words = shlex.split(lines["report"])
    assert "LAP (random mask)=exp/demo/lap-random" in shlex.split(words[words.index("--systems") + 1])
