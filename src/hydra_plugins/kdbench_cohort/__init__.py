"""`hydra/launcher=cohort`: a sweep's runs trained side by side."""
