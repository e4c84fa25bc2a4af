"""Published results are typed rows, and a file that is wrong is refused where it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from metarl.benchmarks.papers import PAPERS, read_papers, rows_of
from metarl.errors import CheckpointError, ConfigError

HEADER = "paper,arxiv,table,benchmark,setting,method,metric,value,ci,confidence,source"
ROW = "RL2,1611.02779,Table 1,Bernoulli bandit,n,Random,total reward,5.0,0.1,high,paper text"


def _file(folder: Path, *lines: str) -> Path:
    path = folder / "papers.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_file_that_metarl_comes_with_is_read_whole() -> None:
    rows = read_papers()
    assert len(rows) == len(PAPERS.read_text().splitlines()) - 1 == 901
    assert len({(row.paper, row.table, row.benchmark, row.setting, row.method, row.metric) for row in rows}) == 901
    bounds = [row for row in rows if row.at_least]
    assert [(row.method, row.value, row.text) for row in bounds] == [
        ("ECET", 0.3, "≥ 0.3"),
        ("ECET, AMAGO-2", 0.9, "≥ 0.9"),
    ]


def test_a_table_is_found_by_setting_and_method() -> None:
    table = rows_of("RL2", "Table 1")
    assert len(table) == 72
    row = table["n=500,k=50", "Gittins"]
    assert (row.value, row.rounding, row.half_interval, row.text) == (463.7, 0.05, None, "463.7")
    assert row.reference == "RL2 (arXiv 1611.02779), Table 1"
    assert rows_of("SNAIL", "Table 3")["N,K=100,5", "SNAIL"].text == "79.1 ± 1.0"


def test_numbers_keep_their_digits(tmp_path: Path) -> None:
    (row,) = read_papers(_file(tmp_path, HEADER, ROW.replace("5.0,0.1", "68.20,")))
    assert (row.text, row.rounding, row.half_interval) == ("68.20", pytest.approx(0.005), None)
    (row,) = read_papers(_file(tmp_path / "..", HEADER, ROW.replace("5.0,0.1", "500,")))
    assert (row.text, row.rounding) == ("500", 0.5)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["paper,value"], r"papers\.csv, line 1: expected the columns paper, arxiv, .*, source, got paper, value"),
        ([], "line 1: expected the columns .* got nothing"),
        ([HEADER, ROW, "RL2,1"], r"papers\.csv, line 3: expected 11 fields, got 2"),
        ([HEADER, ROW.replace("5.0", "five")], "line 2: value must be a number, or >= and a number, got 'five'"),
        ([HEADER, ROW.replace("5.0", "nan")], "line 2: value must be a number, or >= and a number, got 'nan'"),
        ([HEADER, ROW.replace("0.1", "+-")], "line 2: ci must be a number of 0 or more, or nothing, got '\\+-'"),
        ([HEADER, ROW.replace("0.1", "-1")], "line 2: ci must be a number of 0 or more, or nothing, got '-1'"),
        ([HEADER, ROW.replace("high", "sure")], "line 2: confidence must be high, medium, low, got 'sure'"),
        ([HEADER, ROW.replace("paper text", "")], "line 2: source is empty; expected text"),
    ],
)
def test_a_row_that_is_wrong_is_named(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_papers(_file(tmp_path, *lines))


def test_a_file_that_is_not_there_or_no_text_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"could not read .*none\.csv: No such file"):
        read_papers(tmp_path / "none.csv")
    (tmp_path / "papers.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"papers\.csv: expected UTF-8"):
        read_papers(tmp_path / "papers.csv")


def test_unknown_papers_and_tables_are_refused_with_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"unknown paper 'RL3'. Did you mean 'RL2'\? Valid choices: .*MAML"):
        rows_of("RL3", "Table 1")
    with pytest.raises(ConfigError, match=r"unknown table of RL2 'Table 9'. .*Table 1, Table 2"):
        rows_of("RL2", "Table 9")
    with pytest.raises(ConfigError, match="has several numbers for one setting and method"):
        rows_of("MAML", "Table 1")
