import pytest

from segdistill import show
from segdistill.measure import sizes
from segdistill.measure.published import PUBLISHED
from segdistill.show import lists as show_lists


def test_published_sizes_are_counted_in_the_papers_form(monkeypatch):
    chosen = [p for p in PUBLISHED if p.name in ("espnet_c", "pspnet_resnet18_deepstem")]
    monkeypatch.setattr(sizes, "PUBLISHED", chosen)
    deepstem, espnet = sizes.published_sizes()
    assert deepstem.params == pytest.approx(13.07e6, rel=0.001)
    assert deepstem.flops == pytest.approx(2 * 120.9e9, rel=0.001)  # without the auxiliary head
    assert (espnet.params, round(espnet.flops / 2e6)) == (349_193, 3468)
    assert espnet.published in chosen


def test_list_models_with_stats(monkeypatch, capsys):
    monkeypatch.setattr(sizes, "PUBLISHED", [p for p in PUBLISHED if p.name == "espnet"])
    monkeypatch.setattr(sizes, "list_models", lambda: ["espnet_c"])
    show_lists.catalogue(show.Console(width=200), "models", stats=True)
    out = capsys.readouterr().out
    assert all(figure in out for figure in ("0.3635", "9.34", "4.670", "4.422", "SKD", "espnet_c", "0.3492", "6.94"))


def test_stats_are_of_models():
    with pytest.raises(ValueError, match="--stats is of models"):
        show_lists.catalogue(show.Console(), "data", stats=True)
