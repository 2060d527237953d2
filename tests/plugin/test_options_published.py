"""Option files of other repositories: trained, warned about or refused, each as it should be."""

from pathlib import Path

import pytest
import torch
import yaml
from option_data import picture, write_empty_vgg19, write_folder
from published_faults import FAULTS
from published_forks import FORKS
from published_options import FILES
from published_templates import Published
from runs_in_process import command, folder, refused  # noqa: F401  (each test starts in it)

from esc_arch.plugin.preflight import check_options

# isort: split
# Importable only once esc_arch has mended it.
from basicsr.archs import build_network

ALL = [*FILES, *FORKS, *FAULTS]


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pairs of 256 x 256 and 64 x 64, a list of them, and a file for VGG19."""
    place = tmp_path_factory.mktemp("published")
    write_folder(place / "gt", {name: picture(256) for name in "abc"})
    write_folder(place / "lq", {name: picture(64) for name in "abc"})
    (place / "list.txt").write_text("a.png\nb.png\nc.png\n")
    write_empty_vgg19(place)
    return place


@pytest.mark.parametrize("published", ALL, ids=lambda published: published.name)
def test_published_file_is_judged_rightly(
    published: Published, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data_folder)
    options = published.options()
    weights = options["path"].get("pretrain_network_g")
    if weights == "net_g.pth":
        state = build_network(options["network_g"]).state_dict()
        torch.save({"params": state, "params_ema": state}, "net_g.pth")
    path = tmp_path / "options.yml"
    path.write_text(yaml.safe_dump(options, sort_keys=False, allow_unicode=True))
    report = check_options(path, is_train=not published.test)
    for lines, expected in (
        (report.errors, published.errors),
        (report.warnings, published.warnings),
    ):
        assert len(lines) == len(expected), lines
        for words in expected:
            assert any(words in line for line in lines), (words, lines)


@pytest.mark.slow
@pytest.mark.parametrize("published", ALL, ids=lambda published: published.name)
def test_published_file_trains_tests_or_is_refused_through_the_command(
    published: Published, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("gt", "lq", "list.txt"):
        (tmp_path / name).symlink_to(data_folder / name)
    write_empty_vgg19(tmp_path)
    options = published.options()
    perceptual = options.get("train", {}).get("perceptual_opt")
    if not published.errors and perceptual:
        # Its network's weights are not to be had here.
        del options["train"]["perceptual_opt"]
    if options["path"].get("pretrain_network_g") == "net_g.pth":
        state = build_network(dict(options["network_g"])).state_dict()
        torch.save({"params": state, "params_ema": state}, tmp_path / "net_g.pth")
    if not published.errors and not published.test:
        options["train"]["total_iter"] = 2
        options["datasets"]["train"]["num_worker_per_gpu"] = 0
        if options.get("val"):
            options["val"]["val_freq"] = 2
    path = tmp_path / "options.yml"
    path.write_text(yaml.safe_dump(options, sort_keys=False, allow_unicode=True))
    subcommand = "test" if published.test else "train"
    if published.errors:
        lines = refused(path, subcommand=subcommand).splitlines()
        assert len(lines) == len(published.errors), lines
        return
    status, said = command(subcommand, "-opt", path)
    assert status == 0, said[-3000:]
    assert said.count("basicsr: warning: ") == len(published.warnings), said[:3000]
    if not published.test:
        weights = tmp_path / "experiments" / options["name"] / "models" / "net_g_latest.pth"
        assert weights.is_file()


def test_there_are_as_many_as_promised() -> None:
    assert len(FILES) >= 60
    assert len({published.name for published in ALL}) == len(ALL)
