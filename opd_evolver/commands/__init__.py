"""What the `opd` command does, one file a group of subcommands."""
