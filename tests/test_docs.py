"""The Python of the docs runs, and prints what the page says."""

import re
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def test_the_page_of_ones_own_model_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "shrink-your-own-model.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```\n+((?:    [^\n]+\n)*)", text, re.S)
    assert len(blocks) == 6
    scope = {"__name__": "page"}
    for code, shown in blocks:
        capsys.readouterr()
        exec(compile(code, "shrink-your-own-model.md", "exec"), scope)
        if shown:
            assert capsys.readouterr().out == re.sub("^    ", "", shown, flags=re.M)
    assert {"model.onnx", "model-int8.onnx"} == {file.name for file in tmp_path.iterdir()}
