def test_models_differ_in_the_effect_of_the_limit(load_benchmark):
    benchmark = load_benchmark("long_utterances")
    effects = [benchmark.build_model(config, 500).encoder.block_encoding for config in benchmark.MODELS.values()]
    assert effects == ["exact", "approximate", "unnecessary"]
    megabytes, seconds = benchmark.measure("Zipformer, limited", 2, 1.0)
    assert megabytes >= 0 and seconds > 0


def test_blocks_change_frames_of_the_unlimited_zipformer_only_beyond_the_limit(load_benchmark):
    benchmark = load_benchmark("long_utterances")
    mean, largest, share = benchmark.difference(1, 3, 1.0)
    assert 0 < mean < largest < 0.1 and 0 <= share < 0.5
    assert benchmark.difference(1, 1, 2.0) == [0, 0, 0]
