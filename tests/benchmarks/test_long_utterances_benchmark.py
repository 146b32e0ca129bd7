def test_models_differ_in_the_effect_of_the_limit(load_benchmark):
    benchmark = load_benchmark("long_utterances")
    effects = [benchmark.build_model(config, 500).encoder.block_encoding for config in benchmark.MODELS.values()]
    assert effects == ["exact", "approximate", "unnecessary"]
    megabytes, seconds = benchmark.measure("Zipformer, limited", 2, 1.0)
    assert megabytes >= 0 and seconds > 0
