"""The page of an evaluation: scores next to the report's, and every sample behind them."""
