"""One module per `onebeat` subcommand, each with `add_arguments(parser)` and `run(args) -> int`."""
