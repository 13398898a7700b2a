"""Tables: every row of the file is a row, what is missing is missing, and no cell is a formula."""

import numpy as np
import pandas as pd
import pytest

import simba_lab as sb
from simba_lab.core import tables


def written(folder, name, text, encoding="utf-8"):
    (folder / name).write_bytes(text.encode(encoding))
    return folder / name


@pytest.mark.parametrize(
    "text",
    [
        'id\tnote\nP1\t"fell asleep\nP2\tok\nP3\twoke up"\n',
        'id\tnote\nP1\t5" tall\nP2\t"quoted"\nP3\tx\n',
        '\ufeffid\tnote\r\nP1\ta\r\n\r\n"P2"\t"say ""hi"""\r\nP3\tb\r\n\t\r\n',
    ],
)
def test_every_line_of_a_table_is_a_row_whatever_its_quotes(text, tmp_path):
    rows = tables.read_rows(written(tmp_path, "t.tsv", text))
    assert rows.columns.tolist() == ["id", "note"] and rows["id"].tolist() == ["P1", "P2", "P3"]


def test_cells_of_a_table_stay_text(tmp_path):
    text = 'id, note ,x\n0001,"a, b",NA\n 1E5 ,"say ""hi""", =1+1\n'
    rows = tables.read_rows(written(tmp_path, "t.csv", text))
    assert rows.to_dict("list") == {
        "id": ["0001", "1E5"],
        "note": ["a, b", 'say "hi"'],
        "x": ["NA", "=1+1"],
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('id,note\nP1,"fell asleep\nP2,ok\nP3,woke up"\n', r"Line 2: .*Close its quotes"),
        ('id,note\nP1,"a"b\n', "Line 2: "),
        ("id,note\nP1,a\nP2,b,c\n", "Line 3 has 3 cells and the header 2"),
        ("id,id\nP1,a\n", "no column twice"),
        ("id,note\n\n,\n", "no row below it"),
        ("", "no header"),
    ],
)
def test_damaged_tables_name_the_line(text, says, tmp_path):
    with pytest.raises(sb.core.TemplateError, match=says):
        tables.read_rows(written(tmp_path, "t.csv", text))


def test_encodings_of_tables_are_named(tmp_path):
    with pytest.raises(sb.core.TemplateError, match="It is in UTF-16: save it as UTF-8"):
        tables.read_rows(written(tmp_path, "t.csv", "id,note\nP1,ü\n", "utf-16"))
    with pytest.raises(sb.core.TemplateError, match="Line 2 is not: save the file as UTF-8"):
        tables.read_rows(written(tmp_path, "t.csv", "id,note\nP1,ü\n", "latin-1"))


def test_what_people_write_for_missing_values_is_missing():
    values = [
        "N/A",
        "NaN",
        "n.a.",
        "null",
        "-",
        " ",
        "",
        None,
        np.nan,
        pd.NaT,
        pd.NA,
        "none",
        "F",
        0,
    ]
    missing = tables.missing_in(values, meant=["none"])
    assert missing.tolist() == [True] * 11 + [False] * 3
    with pytest.raises(
        sb.SimbaError,
        match=r"sex must be without missing values, got 2 of 3 missing \(b, c\), written as "
        r"\['-', 'N/A'\]\. Drop",
    ):
        tables.check_complete("sex", ["F", "N/A", "-"], names="abc")


def test_text_that_spreadsheets_would_run_is_neutralised_and_numbers_stay():
    table = pd.DataFrame(
        {
            "=a": ["=cmd|' /C calc'!A0", "+1", "-2.5e3", "@x", "-x", "x=1"],
            "n": [-1.5, 2, 3, 4, 5, 6],
        },
        index=pd.Index(["=b", *"cdefg"], name="id"),
    )
    lines = tables.table_text(table).split("\n")
    assert lines[:3] == ["id,'=a,n", "'=b,'=cmd|' /C calc'!A0,-1.5", "c,+1,2.0"]
    assert lines[3:7] == ["d,-2.5e3,3.0", "e,'@x,4.0", "f,'-x,5.0", "g,x=1,6.0"]
    assert table.columns[0] == "=a" and table.index[0] == "=b"
