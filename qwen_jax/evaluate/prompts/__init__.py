"""What a model reads, to look at before spending compute."""
