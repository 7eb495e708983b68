"""The verbs of s2ctl that talk to scistreamd over D-Bus, and what they share."""
