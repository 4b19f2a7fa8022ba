"""Which permissions a whole life of the cluster uses: all that are granted, or a reason."""
