def test_both_engines_are_measured_dense_and_with_masks(load_benchmark):
    engines = load_benchmark("engines")
    (row,) = engines.measure_times("emformer-5M", [1], 1)
    assert len(row) == len(engines.TIME_HEADER) and row[:2] == ["emformer-5M", "1"]
    assert all(float(time.split()[0]) > 0 for time in row[2:])
