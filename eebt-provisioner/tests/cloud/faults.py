"""Faults that the emulators' calls shall meet."""

from collections import Counter


class Faults:
    def __init__(self):
        self.coming = []
        self.met = Counter()  # action -> how many of its calls met a fault

    def add(self, action, fault, skip=0, times=1):
        """For the next calls of this action, after `skip` of them."""
        self.coming.append({"action": action, "fault": fault, "skip": skip, "times": times})

    def clear(self):
        self.coming.clear()
        self.met.clear()

    def of(self, action):
        """That of this call, if it meets one."""
        for fault in self.coming:
            if fault["action"] != action:
                continue
            if fault["skip"] > 0:
                fault["skip"] -= 1
            elif fault["times"] != 0:
                fault["times"] -= 1
                self.met[action] += 1
                return fault["fault"]
        return None
