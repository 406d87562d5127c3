"""The model that serves: how it is chosen, which ones served before, and what each was made of."""
