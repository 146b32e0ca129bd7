from tiny_experiment import make_experiment, write_complementary_masks

from icefall_pathways.decoding.config import TrainedModelConfig
from icefall_pathways.decoding.pretrained import load_trained_model


def test_sizes(load_benchmark, tmp_path):
    benchmark = load_benchmark("package_size")
    make_experiment(tmp_path)
    write_complementary_masks(tmp_path / "exp")
    trained = load_trained_model(TrainedModelConfig(exp_dir=tmp_path / "exp"))
    sizes = {precision: benchmark.measure(trained, tmp_path / "exp", precision) for precision in benchmark.PRECISIONS}
    for size in sizes.values():
        assert size.bound < size.package < size.separate
    assert sizes["int8"].package < sizes["float16"].package < sizes["float32"].package
    assert sizes["float32"].dense == 2 * 4 * sum(w.numel() for w in trained.model.state_dict().values())
