"""What the subcommands of ``seqssgd`` do; nothing here makes ``seqssgd --help`` wait for torch."""
