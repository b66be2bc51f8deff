"""The frozen networks whose words are cached: plain configs, and the runners that they build."""
