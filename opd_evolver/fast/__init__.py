"""The fast loop: waves of episodes, one committer, maintenance at barriers."""
