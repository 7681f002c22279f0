"""Where the runs of a comparison are carried out."""
