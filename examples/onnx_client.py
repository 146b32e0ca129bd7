#!/usr/bin/env python3
"""Decode audio files of any languages in one batch, with a folder written by `icefall-pathways export --format onnx`.

Usage: python examples/onnx_client.py FOLDER fr=speech.flac it=discorso.wav

It needs numpy, onnxruntime, kaldi-native-fbank and soundfile only. Files are decoded chunk by chunk, as live audio is;
`docs/guide/export.md` describes the interface of the models.
"""

import argparse
import json
from pathlib import Path

import kaldi_native_fbank
import numpy as np
import onnxruntime
import soundfile


class Recognizer:
    """Greedy search with a streaming transducer for several languages."""

    def __init__(self, folder):
        self.config = json.loads((folder / "onnx.json").read_text(encoding="utf-8"))
        self.encoder, self.decoder, self.joiner = (
            onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), providers=["CPUExecutionProvider"])
            for name in ("encoder", "decoder", "joiner")
        )
        lines = (folder / "tokens.txt").read_text(encoding="utf-8").splitlines()  # in the order of the ids
        self.symbols = [line.rsplit(maxsplit=1)[0] for line in lines]

    def features(self, samples, sample_rate):
        """Return the features (T, num_bins) of samples (n,) in [-1, 1]."""
        config = self.config["features"]
        if sample_rate != config["sample_rate"]:
            raise ValueError(f"audio at {sample_rate} Hz: expected {config['sample_rate']} Hz; resample it")
        options = kaldi_native_fbank.FbankOptions()
        options.frame_opts.samp_freq, options.frame_opts.dither, options.frame_opts.snip_edges = sample_rate, 0, False
        options.frame_opts.frame_length_ms = 1000 * config["frame_length"] / sample_rate
        options.frame_opts.frame_shift_ms = 1000 * config["frame_shift"] / sample_rate
        options.mel_opts.num_bins = config["num_bins"]
        options.mel_opts.low_freq, options.mel_opts.high_freq = config["low_freq"], config["high_freq"]
        fbank = kaldi_native_fbank.OnlineFbank(options)
        fbank.accept_waveform(sample_rate, samples.tolist())
        fbank.input_finished()
        return np.array([fbank.get_frame(index) for index in range(fbank.num_frames_ready)], np.float32)

    def decode(self, features, languages):
        """Return the tokens of utterances, all in one batch: features (T, num_bins) and language of each."""
        shift, window, blank = (self.config[name] for name in ("chunk_shift", "chunk_window", "blank_id"))
        tokens, streams = [[] for _ in features], np.arange(len(features))
        indices = {language: index for index, language in enumerate(self.config["languages"])}
        if unknown := [language for language in languages if language not in indices]:
            raise ValueError(f"unknown language {unknown[0]!r}: expected one of {', '.join(indices)}")
        languages = np.array([indices[language] for language in languages])
        states = {
            state["name"]: np.zeros([len(streams) if n == "N" else n for n in state["shape"]], state["dtype"])
            for state in self.config["states"]
        }
        context = np.array([[-1] * (self.config["context_size"] - 1) + [blank]] * len(streams))
        (predicted,) = self.decoder.run(None, {"y": context, "language": languages})
        for start in range(0, max(map(len, features)), shift):
            rows = [row for row, stream in enumerate(streams) if len(features[stream]) > start]  # the others have ended
            streams, languages, context, predicted = (a[rows] for a in (streams, languages, context, predicted))
            for state in self.config["states"]:
                states[state["name"]] = states[state["name"]].take(rows, axis=state["stream_axis"])
            x = np.zeros((len(streams), window, self.config["features"]["num_bins"]), np.float32)
            x_lens = np.array([min(window, len(features[stream]) - start) for stream in streams])
            for row, stream in enumerate(streams):
                x[row, : x_lens[row]] = features[stream][start : start + window]
            encoded, lens, *new = self.encoder.run(None, {"x": x, "x_lens": x_lens, "language": languages, **states})
            states = dict(zip(states, new, strict=True))
            for frame in range(encoded.shape[1]):
                inputs = {"encoder_out": encoded[:, frame], "decoder_out": predicted}
                best = self.joiner.run(None, inputs)[0].argmax(axis=1)
                emits = np.flatnonzero((best != blank) & (frame < lens))
                for row in emits:
                    tokens[streams[row]].append(int(best[row]))
                    context[row] = [*context[row, 1:], best[row]]
                if len(emits):
                    (predicted[emits],) = self.decoder.run(None, {"y": context[emits], "language": languages[emits]})
        return tokens


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("files", nargs="+", metavar="LANGUAGE=FILE", type=lambda text: text.split("=", 1))
    arguments = parser.parse_args()
    if wrong := [words[0] for words in arguments.files if len(words) == 1]:
        parser.error(f"{wrong[0]}: expected LANGUAGE=FILE, such as fr={wrong[0]}")
    try:
        recognizer = Recognizer(arguments.folder)
        audio = [soundfile.read(path, dtype="float32", always_2d=True) for _, path in arguments.files]
        inputs = [recognizer.features(samples.mean(axis=1), rate) for samples, rate in audio]
        results = recognizer.decode(inputs, [language for language, _ in arguments.files])
    except (ValueError, OSError, soundfile.LibsndfileError) as error:
        parser.error(str(error))
    for (_, path), tokens in zip(arguments.files, results, strict=True):
        print(f"{path}:", "".join(recognizer.symbols[token] for token in tokens).replace("▁", " ").strip())
