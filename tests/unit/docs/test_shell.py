"""The commands that the tests of the documentation find in shell."""

from tests.unit.docs.shell import commands


def test_every_command_is_found_without_what_is_around_it() -> None:
    text = """
        umbel init    # a comment
        umbel serve --log serve.log & sleep 1
        for i in 1 2; do
          umbel-agent enrol URL $(sed -n $((i + 1))p tokens) \\
              --device d-$i
        done
        NAME=$(umbel list --json | python -c "print(f('x')[0])")
        umbel show "a b" > file
    """
    assert list(commands(text)) == [
        ["sed", "-n", "VALUEp", "tokens"],
        ["umbel", "list", "--json"],
        ["python", "-c", "print(f('x')[0])"],
        ["umbel", "init"],
        ["umbel", "serve", "--log", "serve.log"],
        ["sleep", "1"],
        ["umbel-agent", "enrol", "URL", "VALUE", "--device", "d-$i"],
        ["umbel", "show", "a b"],
    ]
