"""The data core: card + dataset string -> rows -> mixture -> manifest. No torch, no swift."""
