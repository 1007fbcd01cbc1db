"""The seed policy: a tiny stock language model, trained from scratch, that speaks the terse dialect.

`python -m opd_evolver.seed --out opd_evolver/assets/seed-policy` makes it. It knows the mechanics of the
abilities (read memory, recite, act, select, write, follow hindsight) and no convention of any deployed family.
"""
