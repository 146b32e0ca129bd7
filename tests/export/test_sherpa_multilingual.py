"""One model for all languages in sherpa-onnx: it decodes the same tokens as the model from converted features."""

import json

import kaldi_native_fbank
import numpy as np
import onnx
import pytest
import torch
from drawn_masks import random_masks
from stream_models import make_model, spread_tokens
from tiny_experiment import make_experiment, write_complementary_masks

from icefall_pathways.commands.export import Config, run
from icefall_pathways.data.features import FbankConfig
from icefall_pathways.data.level import normalize_level
from icefall_pathways.data.tokenizer import WORD_BOUNDARY, Tokenizer, train_tokenizer
from icefall_pathways.decoding.sherpa_check import pad_for_sherpa
from icefall_pathways.export.nemo_features import conversion_matrix, convert_features
from icefall_pathways.export.sherpa_multilingual import export_sherpa_multilingual
from icefall_pathways.export.sherpa_process import decode_with_sherpa
from icefall_pathways.pathways.activation import FoldedPathways

LANGUAGES = ["en", "fr", "pt-BR"]
VOCAB_SIZE = 24
FEATURES = FbankConfig(level_norm="running-max")
MAX_SYMBOLS = 10  # per frame, in sherpa-onnx's search for NeMo models


def noise(count):
    """Return bursts of noise of different lengths and levels."""
    generator = torch.Generator().manual_seed(2)
    lengths = [9000 + 2370 * index for index in range(count)]
    bursts = [torch.randn(n, generator=generator) * (torch.arange(n) // 1600 % 3) for n in lengths]
    return [burst / burst.abs().max() / 2**index for index, burst in enumerate(bursts)]


def compute_features(samples, nemo):
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither, options.frame_opts.snip_edges = 0.0, False
    options.mel_opts.num_bins, options.mel_opts.low_freq, options.mel_opts.high_freq = 80, 20.0, -400.0
    if nemo:  # as sherpa-onnx computes them
        options.frame_opts.window_type, options.frame_opts.remove_dc_offset = "hann", False
        options.mel_opts.low_freq, options.mel_opts.high_freq, options.mel_opts.is_librosa = 0.0, 8000.0, True
    fbank = kaldi_native_fbank.OnlineFbank(options)
    fbank.accept_waveform(16000, samples.tolist())
    fbank.input_finished()
    return torch.from_numpy(np.array([fbank.get_frame(index) for index in range(fbank.num_frames_ready)]))


def test_converted_features_approximate_those_of_training():
    """For noise, tones and a mixture of both, at two levels."""
    seconds = torch.arange(32000) / 16000
    tones = sum(torch.sin(2 * torch.pi * f * seconds) / 8 for f in (120, 410, 1130, 2900, 6300))
    noise_ = torch.randn(32000, generator=torch.Generator().manual_seed(1)) * 0.1
    for samples in (noise_, tones + noise_ / 100, 0.01 * (tones + noise_)):
        nemo, expected = compute_features(samples, nemo=True), compute_features(samples, nemo=False)
        error = (convert_features(nemo, conversion_matrix(FEATURES)) - expected).abs()
        assert float(error.median()) < 0.3 and float(error.mean()) < 0.7
        assert float((nemo - expected).abs().mean()) > 2.0


@torch.inference_mode()
def greedy(model, features):
    """Return the tokens of greedy search with several symbols per frame."""
    states, tokens, position = model.init_states(1), [], 0
    context = [-1] * (model.decoder.context_size - 1) + [0]
    while position + model.chunk_window < len(features):  # sherpa-onnx waits for one more frame
        chunk = features[None, position : position + model.chunk_window]
        frames, _, states = model.stream(chunk, torch.tensor([model.chunk_window]), states)
        position += model.chunk_shift
        for frame in frames[0]:
            for _ in range(MAX_SYMBOLS):
                predicted = model.decoder(torch.tensor([context]), need_pad=False)[:, 0]
                token = int(model.joiner(frame[None], predicted).argmax())
                if token == model.decoder.blank_id:
                    break
                tokens.append(token)
                context = [*context[1:], token]
    return tokens


@pytest.mark.parametrize(
    "kind, roots",
    [("emformer-memory", None), ("zipformer-language", None), ("zipformer", None), ("emformer", ("encoder",))],
    ids=str,
)
def test_sherpa_decodes_streams_of_all_languages_in_one_batch(kind, roots, tmp_path):
    """With the pathway of each stream; a stream without a language, or with an unknown one, has the first one."""
    texts = ["one two three", "four five", "een twee drie", "vier vijf zes"]
    tokenizer = Tokenizer(train_tokenizer(texts, VOCAB_SIZE, tmp_path))
    torch.manual_seed(1)
    model = make_model(kind, VOCAB_SIZE)
    masks = random_masks(model, LANGUAGES, roots or ("encoder_embed", "encoder", "decoder"))
    pathways = FoldedPathways(model, masks)
    spread_tokens(pathways)
    with torch.no_grad():
        model.joiner.output_linear.bias[0] += 6  # several symbols per frame, but rarely the maximum
    files = export_sherpa_multilingual(tmp_path / "out", model, masks, tokenizer, FEATURES)
    utterances = [pad_for_sherpa(model, samples) for samples in noise(7)]
    languages = [LANGUAGES[index % 3] for index in range(7)]
    matrix, expected = conversion_matrix(FEATURES), []
    for samples, language in zip(utterances, languages, strict=True):
        features = convert_features(compute_features(samples, nemo=True), matrix)
        with pathways.activate(language):
            tokens = greedy(model, normalize_level(features, FEATURES.level_norm))
        expected.append([tokenizer.symbols[token].replace(WORD_BOUNDARY, " ") for token in tokens])
    arrays = [samples.numpy() for samples in utterances]
    results = [result.tokens for result in decode_with_sherpa(files, arrays, languages)]
    assert results == expected
    assert len({token for tokens in results for token in tokens}) > 4
    others = decode_with_sherpa(files, arrays[:3], ["en", "xx", ""])
    assert others[0].tokens == expected[0] and [other.tokens for other in others[1:]] != expected[1:3]


def test_command_compares_the_word_error_rates(tmp_path, capsys):
    make_experiment(tmp_path)
    write_complementary_masks(tmp_path / "exp")
    run(
        Config(
            exp_dir=tmp_path / "exp",
            output_dir=tmp_path / "out",
            format="sherpa-onnx-multilingual",
            precisions=("float16",),
            languages="nl en",
            check_utterances=2,
        )
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith(f"{tmp_path / 'out'}: encoder 0.")
    assert sum("greedy_search" in line or "modified_beam_search" in line for line in lines) == 4
    metadata = {entry.key: entry.value for entry in onnx.load(tmp_path / "out" / "encoder.onnx").metadata_props}
    assert json.loads(metadata["prompt_dictionary"]) == {"nl": 0, "en": 1, "auto": 0}
    assert (tmp_path / "out" / "tokens.txt").read_text(encoding="utf-8").endswith("<blk> 23\n")
