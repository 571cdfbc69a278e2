"""A data set of one's own is a TOML file; what can't be meant is refused by name."""

import pytest

from dlrm_mlet.data import datasets
from dlrm_mlet.toml import ConfigError

MINE = """
name = "my-clicks"
label = "clicked"
dense = ["age", "price"]
categorical = ["user", "ad"]
split = "ordered"

[transform]
age = "identity"
"""


def test_a_users_own_data_set(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(MINE)
    mine = datasets.load(str(path))
    assert (mine.name, mine.dense, mine.categorical) == ("my-clicks", ("age", "price"), ("user", "ad"))
    assert (mine.split, mine.split_seed, mine.transform) == ("ordered", 0, {"age": "identity"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('"ordered"', '"by day"'), r"split = 'by day': expected one of 'random', 'ordered'"),
        (('age = "identity"', 'size = "identity"'), "transform.size: not a dense column"),
        (('age = "identity"', 'age = "sqrt"'), "transform.age = 'sqrt': expected one of 'log1p', 'identity'"),
        (('["user", "ad"]', '["user", "age"]'), "columns age are named twice"),
        (('["user", "ad"]', "[]"), "expected at least one column"),
        (("label", "lable"), "unknown key lable"),
        (
            ("split =", 'columns = ["clicked", "age", "ad"]\nsplit ='),
            "columns: price, user not among them; expected all",
        ),
        (("split =", 'separator = "||"\nsplit ='), r"separator = '\|\|': expected one character, no quote"),
        (("split =", "separator = '\"'\nsplit ="), r"separator = '\"': expected one character, no quote"),
        (("split =", 'encoding = "latin-one"\nsplit ='), "encoding = 'latin-one': expected one that Python knows"),
        (('"my-clicks"', '"../clicks"'), r"name = '\.\./clicks': expected a name that a directory can have"),
        (('"my-clicks"', '"flights"'), "name = 'flights': is a built-in data set's; expected another"),
    ],
)
def test_errors_name_the_file_and_the_key(tmp_path, change, message):
    path = tmp_path / "mine.toml"
    path.write_text(MINE.replace(*change))
    with pytest.raises(ConfigError, match=message) as error:
        datasets.load(str(path))
    assert str(error.value).count(str(path)) == 1


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"'fligths': expected one of flights"):
        datasets.load("fligths")
