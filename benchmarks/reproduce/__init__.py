"""What every table of a paper shares: its cells and their sources, scores on disk, verdicts, and the page."""
