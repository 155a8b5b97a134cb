"""Ways of putting a forced choice to a model, and how one of them is chosen for it. docs/method.md, Ways of asking."""
