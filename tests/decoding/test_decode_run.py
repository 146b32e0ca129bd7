"""Decoding runs on an experiment folder with a random model, two languages and a few cuts of noise."""

import gzip
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from optional_packages import needs_k2
from tiny_experiment import MODEL, TEXTS, VOCAB_SIZE, make_experiment, write_complementary_masks

from icefall_pathways.data.tokenizer import Tokenizer, train_tokenizer
from icefall_pathways.decoding.config import DecodeConfig, StreamingDecodeConfig
from icefall_pathways.decoding.decode_run import decode, decode_streaming
from icefall_pathways.decoding.latency import LatencyConfig, measure
from icefall_pathways.experiment import checkpoints, layout
from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.transducer import build_model
from icefall_pathways.pathways.masks import PathwayMasks

SCRIPTS = Path(__file__).resolve().parents[2] / "egs/mls/ASR/pruned_transducer_pathways"


def _hypotheses(folder):
    return [
        line for path in sorted(folder.glob("recogs-*")) for line in path.read_text().splitlines() if "\thyp=" in line
    ]


@pytest.mark.parametrize(
    "method", ["greedy_search", "modified_beam_search", pytest.param("fast_beam_search", marks=needs_k2)]
)
def test_streaming_decoding_equals_offline_decoding(exp_dir, method, capsys):
    # The defaults of streaming, where they differ.
    options = {"beam": 4.0, "max_contexts": 4, "max_states": 32} if method == "fast_beam_search" else {}
    decode(DecodeConfig(exp_dir=exp_dir, decoding_method=method, **options))
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[3:]] == ["english", "dutch", "average"]
    decode_streaming(StreamingDecodeConfig(exp_dir=exp_dir, decoding_method=method, num_decode_streams=2))
    assert re.search(r"real-time factor: \d+\.\d+ for 4 s of audio", capsys.readouterr().out)
    offline_hypotheses = _hypotheses(exp_dir / method)
    assert len(offline_hypotheses) == 6
    assert any("hyp=['" in line for line in offline_hypotheses)
    # Stored features are rounded, so words could differ if scores were close; here they are not.
    assert _hypotheses(exp_dir / "streaming" / method) == offline_hypotheses


def test_decoding_prints_the_checkpoint_the_average_and_the_masks(exp_dir, capsys):
    (path,) = [*layout.epoch_checkpoints(exp_dir), *layout.batch_checkpoints(exp_dir)]
    averaged = "weights averaged over all updates since the start of the training"
    decode(DecodeConfig(exp_dir=exp_dir))
    assert f"decoding with {path}, {averaged}, no masks\n" in capsys.readouterr().out
    write_complementary_masks(exp_dir)
    decode_streaming(StreamingDecodeConfig(exp_dir=exp_dir, use_averaged_model=False))
    assert f"decoding with {path}, no averaging, masks of {exp_dir / 'masks.safetensors'}\n" in capsys.readouterr().out


def test_streaming_needs_no_stored_features(exp_dir, experiment, tmp_path):
    for language in ("english", "dutch"):
        name = f"mls-{language}_cuts_test.jsonl.gz"
        manifest = gzip.decompress((experiment / name).read_bytes()).replace(b"-feats.lca", b"-removed.lca")
        assert b"-removed.lca" in manifest
        (tmp_path / name).write_bytes(gzip.compress(manifest))
    config = StreamingDecodeConfig(exp_dir=exp_dir, num_decode_streams=2)
    decode_streaming(config)
    expected = _hypotheses(config.results_dir)
    shutil.rmtree(config.results_dir)
    decode_streaming(replace(config, manifest_dir=tmp_path))
    assert _hypotheses(config.results_dir) == expected


@pytest.mark.parametrize(("run", "config_class"), [(decode, DecodeConfig), (decode_streaming, StreamingDecodeConfig)])
def test_references_do_not_depend_on_the_unicode_normalization(exp_dir, experiment, tmp_path, run, config_class):
    recogs = {}
    for form, text in (("NFC", b"d\\u00e9ux"), ("NFD", b"de\\u0301ux")):
        manifest = gzip.decompress((experiment / "mls-dutch_cuts_test.jsonl.gz").read_bytes())
        assert b"two" in manifest
        (tmp_path / form).mkdir()
        (tmp_path / form / "mls-dutch_cuts_test.jsonl.gz").write_bytes(gzip.compress(manifest.replace(b"two", text)))
        config = config_class(exp_dir=exp_dir, manifest_dir=tmp_path / form, languages="nl")
        run(config)
        (path,) = config.results_dir.glob("recogs-*")
        recogs[form] = path.read_text(encoding="utf-8")
    assert recogs["NFC"] == recogs["NFD"] and "'déux'" in recogs["NFC"]


def test_long_utterances_are_encoded_in_blocks_with_a_message(tmp_path, exp_dir, capsys):
    model = ModelConfig(encoder_type="zipformer", zipformer="tiny", cnn_module_kernel="5", chunk_size="8")
    folder = tmp_path / "zipformer"
    folder.mkdir()
    make_experiment(folder, replace(model, left_context_frames="16"))
    config = DecodeConfig(exp_dir=folder / "exp")
    expected = _run_decode(config)
    assert any("hyp=['" in line for line in expected)
    assert "max-context-seconds" not in capsys.readouterr().out
    assert _run_decode(replace(config, max_context_seconds=0.6)) == expected
    message = "4 of 6 utterances, of up to 1 s, are longer than --max-context-seconds 0.6 and are encoded in blocks"
    assert f"{message}, with the same result" in capsys.readouterr().out
    _run_decode(DecodeConfig(exp_dir=exp_dir, max_context_seconds=0.6))
    assert "max-context-seconds" not in capsys.readouterr().out  # the Emformer always encodes segments


@pytest.mark.parametrize("run_config", [(decode, DecodeConfig), (decode_streaming, StreamingDecodeConfig)])
def test_unusable_cuts_are_reported_and_not_decoded(exp_dir, experiment, tmp_path, capsys, run_config):
    run, config_class = run_config
    lines = gzip.decompress((experiment / "mls-dutch_cuts_test.jsonl.gz").read_bytes()).splitlines()
    cuts = [json.loads(line) for line in lines]
    cuts[0]["supervisions"] = []
    cuts[1]["supervisions"] *= 2
    content = "\n".join(map(json.dumps, cuts)).encode()
    (tmp_path / "mls-dutch_cuts_test.jsonl.gz").write_bytes(gzip.compress(content))
    config = config_class(exp_dir=exp_dir, manifest_dir=tmp_path, languages="nl")
    run(config)
    output = capsys.readouterr().out
    assert re.search(r"unusable cuts are not decoded:\n(.*\n)+.*nl .* zero or several transcripts .* 2 ", output)
    assert len(_hypotheses(config.results_dir)) == 1


def test_decoding_writes_icefall_result_files(exp_dir):
    decode(DecodeConfig(exp_dir=exp_dir, decoding_method="modified_beam_search", languages="dutch"))
    suffix = "iter-5-avg-1-modified_beam_search-beam-size-4-use-averaged-model"
    kinds = ("errs-mls-dutch", "recogs-mls-dutch", "wer-summary-all-mls", "wer-summary-mls-dutch")
    names = [f"{kind}-test-{suffix}.txt" for kind in kinds] + [f"wer-summary-all-mls-test-{suffix}.json"]
    assert sorted(path.name for path in (exp_dir / "modified_beam_search").iterdir()) == sorted(names)
    summary = json.loads((exp_dir / "modified_beam_search" / names[-1]).read_text())
    assert summary["languages"]["nl"]["utterances"] == 3
    assert summary["method"] == "modified_beam_search"


def _beam_search_config(exp_dir, **options):
    return DecodeConfig(exp_dir=exp_dir, decoding_method="modified_beam_search", **options)


def test_hotwords_and_language_models_per_language(exp_dir, experiment, tmp_path):
    plain = _run_decode(_beam_search_config(exp_dir))
    assert not any("drie" in line for line in plain)
    (tmp_path / "en.txt").write_text("one :0\n")
    (tmp_path / "nl.txt").write_text("drie\n")
    biased = _run_decode(_beam_search_config(exp_dir, context_file=tmp_path / "{language}.txt", context_score=60.0))
    assert [line for line in biased if line.startswith("en")] == [line for line in plain if line.startswith("en")]
    assert any("drie" in line for line in biased)
    words = Tokenizer(experiment / "bpe.model").symbols
    unigrams = "".join(f"{-0.1 if word == words[9] else -5}\t{word}\n" for word in words[1:])
    (tmp_path / "lm.arpa").write_text(f"\\data\\\nngram 1={len(words) - 1}\n\n\\1-grams:\n{unigrams}\n\\end\\\n")
    fused = _beam_search_config(exp_dir, ngram_lm=tmp_path / "lm.arpa", ngram_lm_scale=0.8)
    assert sum(line.count(words[9].strip("▁")) for line in _run_decode(fused)) > 10
    assert "ngram-lm-scale-0.8" in next(fused.results_dir.glob("recogs-*")).name
    with pytest.raises(ValueError, match=r"fr\.txt"):
        decode(_beam_search_config(exp_dir, context_file=tmp_path / "fr.txt"))
    with pytest.raises(ValueError, match="--ngram-lm works with --decoding-method modified_beam_search"):
        DecodeConfig(ngram_lm=tmp_path / "lm.arpa")


def test_nbest_file_contains_distinct_hypotheses_with_scores_and_times(exp_dir):
    config = _beam_search_config(exp_dir, nbest=3, languages="en")
    decode(config)
    entries = [json.loads(line) for line in next(config.results_dir.glob("nbest-*")).read_text().splitlines()]
    assert [entry["cut"] for entry in entries] == ["en-0", "en-1", "en-2"]
    for entry, line in zip(entries, _hypotheses(config.results_dir), strict=True):
        assert line.endswith(f"hyp={entry['nbest'][0]['text'].split()}")
        assert len({tuple(alternative["tokens"]) for alternative in entry["nbest"]}) == len(entry["nbest"]) <= 3
        for alternative in entry["nbest"]:
            assert alternative["score"] == alternative["log_prob"] < 0
            assert alternative["times"] == sorted(alternative["times"])
            assert len(alternative["times"]) == len(alternative["tokens"])
    times = [time for entry in entries for alternative in entry["nbest"] for time in alternative["times"]]
    assert 0.5 < max(times) < 0.9  # the cuts last up to 0.875 s


def _run_decode(config):
    """Remove previous results, decode, and return the hypotheses."""
    shutil.rmtree(config.results_dir, ignore_errors=True)
    decode(config)
    return _hypotheses(config.results_dir)


def test_each_language_uses_its_pathway(exp_dir):
    config = DecodeConfig(exp_dir=exp_dir)
    dense = _run_decode(config)
    masks = write_complementary_masks(exp_dir)
    assert _run_decode(replace(config, masks="none")) == dense
    masked = _run_decode(config)
    assert masked != dense
    assert _run_decode(replace(config, masks=str(exp_dir / layout.MASKS_FILE))) == masked
    # A checkpoint with zero weights outside a pathway gives the same results without masks.
    path = layout.batch_checkpoint(exp_dir, 5)
    original = checkpoints.read(path)
    for language in ("en", "nl"):
        weights = dict(original["model_avg"])
        weights.update({name: weights[name] * masks.mask(name, language) for name in masks.names})
        checkpoints.save({**original, "model_avg": weights}, path)
        hypotheses = _run_decode(replace(config, masks="none", languages=language))
        assert hypotheses == [line for line in masked if line.startswith(language)]


def test_missing_manifest_is_rejected(exp_dir, experiment):
    decode(DecodeConfig(exp_dir=exp_dir, languages="en"))
    before = sorted((exp_dir / "greedy_search").iterdir())
    with pytest.raises(ValueError, match=r"mls-french_cuts_test.*prepare.sh"):
        decode(DecodeConfig(exp_dir=exp_dir, languages="nl fr"))
    with pytest.raises(ValueError, match="mls-english_cuts_dev"):
        decode_streaming(StreamingDecodeConfig(exp_dir=exp_dir, split="dev"))
    assert set(before) <= set((exp_dir / "greedy_search").iterdir())


def test_masks_of_another_model_are_refused(exp_dir, tmp_path):
    other = build_model(replace(MODEL, encoder_dim=32), VOCAB_SIZE)
    PathwayMasks.dense(other, ["en", "nl"]).save(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="another model"):
        decode(DecodeConfig(exp_dir=exp_dir, masks=str(tmp_path / "other.safetensors")))


def test_tokenizer_of_another_model_is_refused(exp_dir, tmp_path):
    path = train_tokenizer(TEXTS, VOCAB_SIZE - 1, tmp_path / "bpe")
    with pytest.raises(ValueError, match="23 tokens and the model 24"):
        decode(DecodeConfig(exp_dir=exp_dir, bpe_model=path))


def test_latency_of_an_experiment_is_measured_and_written(exp_dir):
    options = {"exp_dir": exp_dir, "streams": "1 2", "utterances": 2, "languages": "en nl"}
    table = measure(LatencyConfig(**options))
    assert [line.split()[0] for line in table.splitlines()[2:]] == ["1", "2"]
    figures = json.loads(next((exp_dir / "streaming" / "greedy_search").glob("latency-*.json")).read_text())
    assert figures["2"]["audio"] == pytest.approx(2 * (8000 + 11000) / 16000)
    assert figures["1"]["final"]["50"] > 0


def test_invalid_audio_is_reported_after_the_other_utterances(exp_dir, experiment, tmp_path):
    for path in experiment.glob("*"):
        if path.suffix in (".gz", ".model") or path.name.endswith("-feats"):
            (tmp_path / path.name).symlink_to(path)
    manifest = (experiment / "mls-dutch_cuts_test.jsonl.gz").read_bytes()
    broken = gzip.decompress(manifest).decode().replace(f"{experiment}/nl-1.wav", f"{tmp_path}/broken.wav")
    (tmp_path / "mls-dutch_cuts_test.jsonl.gz").unlink()
    (tmp_path / "mls-dutch_cuts_test.jsonl.gz").write_bytes(gzip.compress(broken.encode()))
    samples, rate = soundfile.read(experiment / "nl-1.wav")
    samples[500] = np.nan
    soundfile.write(tmp_path / "broken.wav", samples, rate, subtype="FLOAT")
    config = StreamingDecodeConfig(exp_dir=exp_dir, manifest_dir=tmp_path)
    with pytest.raises(ValueError, match=r"dutch test: 1 of 3 utterances .* nl-1: samples that are not finite"):
        decode_streaming(config)
    assert len(list(config.results_dir.glob("recogs-mls-english-*"))) == 1
    (tmp_path / "broken.wav").unlink()
    with pytest.raises(ValueError, match="nl-1: cannot read its audio"):
        decode_streaming(config)


@pytest.mark.parametrize("script", ["decode.py", "streaming_decode.py"])
def test_decoding_scripts_print_the_table_and_report_errors(exp_dir, script):
    command = [sys.executable, str(SCRIPTS / script), "--exp-dir", str(exp_dir)]
    done = subprocess.run([*command, "--languages", "en", "--use-averaged-model", "0"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[3].startswith("english")
    failed = subprocess.run([*command, "--epoch", "7"], capture_output=True, text=True)
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1].startswith("error: ")
    assert "epoch-7.pt" in failed.stderr
