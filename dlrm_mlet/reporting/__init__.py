"""Tables of results -> curves, figures, verdicts, pages. Needs the extra `reporting`."""
