"""Extensions of Sphinx, named in `_config.yml`: docstrings, formulas, glossary, what an edit reaches, theme."""
