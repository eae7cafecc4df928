"""Checks of what is released, by `make build` and `make bounds`; they make environments, so `make test` has none of them."""
