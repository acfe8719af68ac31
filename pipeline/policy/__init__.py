"""Policy as enforcers get it, in the order that a policy file meets it.

`load` reads the files of one folder and hands their texts on; `lex` cuts a text into tokens that know where they stand; `parse`
makes clauses of them and refuses by name what is not supported yet; `check` gives every clause its id and compares ids across
files; `entities` reads the hierarchy; `compile` puts both together as one bundle and refuses a hierarchy that contains itself.
"""
