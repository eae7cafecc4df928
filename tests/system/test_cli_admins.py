"""The commands about who may do what, as programs, against a running server."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from subprocess import CompletedProcess

from tests.server_harness import RunningServer
from tests.umbel_command import Umbel


def test_an_owner_says_who_may_do_what_and_sees_who_did_what(running: RunningServer, tmp_path: Path) -> None:
    command = Umbel(tmp_path / "server")
    data = command.json

    def umbel(*words: str, code: int = 0, **environment: str) -> CompletedProcess[str]:
        done = command.run(*words, **environment)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    assert "No admins besides the local one" in umbel("admin", "list").stdout
    shown = umbel("admin", "add", "olga", "--role", "operator", "-p", "home", "--expires", "90d").stdout
    assert "olga is operator for home, for 90.0 days" in shown
    exported = dict(re.findall(r"export (UMBEL_\w+)=(\S+)", shown))
    assert exported["UMBEL_URL"] == running.state.server_url
    assert re.fullmatch(r"umbel_[0-9a-f]{16}_[A-Za-z0-9_-]{43}", exported["UMBEL_TOKEN"])
    assert umbel("devices", "list", **exported).returncode == 0
    refused = umbel("admin", "list", code=1, **exported)
    assert refused.stderr.strip().count("\n") == 0
    assert "this needs the role owner, and olga is operator" in refused.stderr
    refused = umbel("command", "send", "report", "-p", "office", code=1, **exported)
    assert "population 'office' is unknown to olga" in refused.stderr
    vera = data("admin", "add", "vera", "--role", "viewer")
    assert (vera["populations"], vera["expires"]) == ([], 0.0)
    viewing = {"UMBEL_URL": vera["server"], "UMBEL_TOKEN": vera["token"]}
    assert "needs the role operator" in umbel("command", "send", "report", "-p", "home", code=1, **viewing).stderr

    table = umbel("admin", "list").stdout
    assert re.search(r"olga +operator +home +good for 90.0 days", table)
    assert re.search(r"vera +viewer +all populations +good", table)
    assert exported["UMBEL_TOKEN"] not in table
    assert "token" not in data("admin", "list")[0]
    assert "is refused from now on" in umbel("admin", "revoke", "olga").stdout
    assert "this token was revoked" in umbel("devices", "list", code=1, **exported).stderr
    assert "revoked" in umbel("admin", "list").stdout
    assert "no admin 'olga'" in umbel("admin", "revoke", "olga", code=1).stderr
    assert data("admin", "revoke", "vera")["revoked"] > 0

    for words in (
        ("admin", "add", "x", "--role", "king"),
        ("admin", "add", "x"),
        ("admin", "add", "x", "--role", "viewer", "--expires", "soon"),
        ("admin", "add", "x", "--role", "viewer", "--expires", "-3d"),
        ("audit", "list", "--since", "yesterday"),
        ("audit", "list", "--limit", "0"),
    ):
        assert umbel(*words, code=2).stderr.strip().count("\n") == 0

    entries = data("audit", "list", "--since", "1h")
    assert [entry["action"] for entry in reversed(entries)] == [
        *("admin.add", "command.send", "admin.add", "command.send", "admin.revoke", "admin.revoke", "admin.revoke")
    ]
    assert [entry["who"] for entry in data("audit", "list", "--who", "vera", "--limit", "5")] == ["vera"]
    assert "this needs the role operator" in umbel("audit", "list").stdout
    assert "7 entries verified; the newest hash is" in umbel("audit", "verify").stdout.replace("\n", " ")
    with closing(sqlite3.connect(tmp_path / "server" / "umbel.sqlite")) as connection:
        connection.execute("DROP TRIGGER audit_no_update")
        connection.execute("UPDATE audit SET who = 'nobody' WHERE sequence = 4")
        connection.commit()
    assert "entry 4 was changed" in umbel("audit", "verify", code=1).stdout
    found = data("audit", "verify", code=1)
    assert (found["entries"], found["fault"].startswith("entry 4 was changed")) == (3, True)
