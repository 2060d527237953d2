"""Option files of other repositories: trained, warned about or refused, each as it should be."""

from pathlib import Path

import pytest
import torch
import yaml
from option_data import picture, write_empty_vgg19, write_folder
from published_options import FILES, Published

from esc_arch.plugin.preflight import check_options

# isort: split
# Importable only once esc_arch has mended it.
from basicsr.archs import build_network


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pairs of 160 x 160 and 40 x 40, a list of them, and a file for VGG19."""
    folder = tmp_path_factory.mktemp("published")
    write_folder(folder / "gt", {name: picture(160) for name in "abc"})
    write_folder(folder / "lq", {name: picture(40) for name in "abc"})
    (folder / "list.txt").write_text("a.png\nb.png\nc.png\n")
    write_empty_vgg19(folder)
    return folder


@pytest.mark.parametrize("published", FILES, ids=lambda published: published.name)
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


def test_there_are_as_many_as_promised() -> None:
    assert len(FILES) >= 60
    assert len({published.name for published in FILES}) == len(FILES)
