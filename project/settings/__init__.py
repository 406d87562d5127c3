"""params.yaml.

- the sections: `section` (their base), `sections` (what decides results, and all of them together), `operation`
- reading them: `parsing` (the file), `grid` (the architectures), `loading` (both)
- `explaining` errors, and the `schema` for editors
"""
