"""Messages to a bank or a hotel with what they want and the values they name, for `./bench tuning-quality`: (message, JSON) pairs made by rule from
a seed, so that no text of others is needed. Modelled on what NLU++ (Casanueva et al. 2022) is like: several intents a message, seventeen kinds of
slots, values copied word by word. Names of people, companies and places in test rows stand in no train row, and a fifth of the phrases neither."""

import json
import random

WEEKDAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
MONTHS = "january february march april may june july august september october november december".split()
FIRST = "alma bruno carla dario elif farid greta hugo ines jonas kaya lena milan nora oskar petra quentin rosa samir tilda umar vera wanda yusuf".split()
LAST = "abel berger costa dorn eckert fuchs gallo heller ivanov jansen keller lorenz marino novak olsen pavlov quandt rossi sander torres ulrich vidal".split()
COMPANIES = ["northwind energy", "kettle and co", "blue harbour", "fastnet", "gym republic", "moon books", "cargo line", "green grocer", "pixel cloud", "river insurance", "tea palace", "city cabs", "metro mobile", "old mill bakery"]
CITIES = "lisbon oslo vienna ghent porto riga zagreb bergen turin leipzig lyon krakow".split()
CARDS = ["debit", "credit", "prepaid", "business"]
SHOPS = ["groceries", "travel", "clothes", "restaurants", "fuel", "books"]
ROOMS = ["single room", "double room", "suite", "family room"]
SERVICES = ["breakfast", "parking", "the sauna", "the gym", "room service", "the shuttle"]
UNSEEN = 4  # of the lists of names, and every fifth phrase, are kept for the test


class Values:
    """Draws a value of each slot, as a customer writes it."""

    def __init__(self, generator, test):
        self.draw, self.test = generator, test

    def name(self, names):
        return self.draw.choice(names[-UNSEEN:] if self.test else names[:-UNSEEN])

    def amount(self):
        n = self.draw.randint(3, 1900)
        return self.draw.choice([f"{n} euros", f"{n}.{self.draw.randint(10, 99)}", f"{n} pounds", f"£{n}", f"{n} bucks"])

    def date(self):
        day, month = self.draw.randint(1, 28), self.draw.choice(MONTHS)
        weekday = self.draw.choice(WEEKDAYS)
        return self.draw.choice([f"{month} {day}", f"{day}th of {month}", f"next {weekday}", weekday, "tomorrow", f"{day}/{self.draw.randint(1, 12)}"])

    def time(self):
        hour = self.draw.randint(1, 12)
        return self.draw.choice([f"{hour} {self.draw.choice(['am', 'pm'])}", f"{hour}:{self.draw.choice(['15', '30', '45'])}", f"half past {hour}", "noon"])

    def period(self):
        n = self.draw.randint(2, 9)
        return self.draw.choice(["last month", "this year", f"the last {n} weeks", f"{self.draw.choice(MONTHS)}", f"{n} months"])

    def of(self, slot):
        count = lambda low, high: str(self.draw.randint(low, high))
        rules = {
            "person_name": lambda: f"{self.name(FIRST)} {self.name(LAST)}", "company_name": lambda: self.name(COMPANIES), "city": lambda: self.name(CITIES),
            "amount_of_money": self.amount, "date": self.date, "date_from": self.date, "date_to": self.date, "time": self.time, "time_from": self.time,
            "time_to": self.time, "date_period": self.period, "card": lambda: self.draw.choice(CARDS), "category": lambda: self.draw.choice(SHOPS),
            "room": lambda: self.draw.choice(ROOMS), "service": lambda: self.draw.choice(SERVICES), "people": lambda: count(1, 9), "nights": lambda: count(1, 14)}
        return rules[slot]()


# Intents and a phrase with slots in braces.
PHRASES = [
    (["transfer"], "i want to send {amount_of_money} to {person_name}"), (["transfer"], "please pay {person_name} {amount_of_money} on {date}"),
    (["transfer", "when"], "when will {person_name} get the {amount_of_money} i sent on {date}"), (["transfer", "limit"], "why can i not transfer more than {amount_of_money}"),
    (["direct_debit", "cancel"], "stop the direct debit to {company_name}"), (["direct_debit", "cancel"], "{company_name} must not take {amount_of_money} any more"),
    (["direct_debit", "why"], "why did {company_name} take {amount_of_money} on {date}"), (["direct_debit", "change"], "move my {company_name} payment to {date}"),
    (["refund"], "{company_name} owes me {amount_of_money}"), (["refund", "when"], "when do i get {amount_of_money} back from {company_name}"),
    (["card", "lost"], "i lost my {card} card on {date}"), (["card", "block"], "block the {card} card right now"),
    (["card", "order"], "send a new {card} card to {city}"), (["card", "limit", "change"], "set the limit of my {card} card to {amount_of_money}"),
    (["spending"], "how much did i spend on {category} in {date_period}"), (["spending"], "what went to {company_name} over {date_period}"),
    (["spending", "compare"], "did i spend more on {category} than {amount_of_money} in {date_period}"), (["balance"], "what was on my account at {date}"),
    (["book"], "i need a {room} for {people} people from {date_from} to {date_to}"), (["book"], "book {nights} nights for {people} of us starting {date_from}"),
    (["book"], "a {room} in {city} for {nights} nights please"), (["book", "how_much"], "what does a {room} cost from {date_from} until {date_to}"),
    (["book", "change"], "change the booking of {person_name} to {date_from}"), (["book", "change"], "we are {people} now and stay until {date_to}"),
    (["book", "cancel"], "cancel the {room} under {person_name}"), (["book", "cancel"], "i cannot come to {city} on {date}"),
    (["arrival"], "we arrive at {time} on {date}"), (["arrival", "can"], "can {person_name} check in at {time}"),
    (["service", "when"], "is {service} open from {time_from} to {time_to}"), (["service", "how_much"], "how much is {service} for {people} people"),
    (["service", "book"], "reserve {service} for {time} on {date}"), (["service", "complain"], "{service} was closed at {time}"),
    (["table", "book"], "a table for {people} at {time}"), (["table", "change"], "move our table from {time_from} to {time_to}"),
    (["invoice"], "send the invoice of {date_period} to {company_name}"), (["invoice", "wrong"], "the bill says {amount_of_money} for {nights} nights"),
]
BEFORE = ["", "", "", "hi, ", "hello there ", "hey, ", "good morning, ", "please help: ", "so "]
AFTER = ["", "", "", " thanks", " please", ", is that possible?", " asap", " cheers"]
BETWEEN = [" and ", ", also ", ". ", " and then ", "; "]
SLOTS = ["person_name", "company_name", "city", "amount_of_money", "date", "date_from", "date_to", "time", "time_from", "time_to", "date_period", "card", "category", "room", "service", "people", "nights"]


def message(draw, test):
    values = Values(draw, test)
    known = [phrase for at, phrase in enumerate(PHRASES) if test or at % 5 != 2]
    chosen = draw.sample(known, draw.choice([1, 1, 2]))
    intents, slots, parts = [], {}, []
    for wants, phrase in chosen:
        named = [slot for slot in SLOTS if "{" + slot + "}" in phrase]
        if any(slot in slots for slot in named):
            continue
        drawn = {slot: values.of(slot) for slot in named}
        slots.update(drawn)
        intents += [want for want in wants if want not in intents]
        parts.append(phrase.format(**drawn))
    text = draw.choice(BEFORE) + draw.choice(BETWEEN).join(parts) + draw.choice(AFTER)
    answer = {"intents": sorted(intents), **{slot: slots[slot] for slot in SLOTS if slot in slots}}
    return text, json.dumps(answer, ensure_ascii=False, separators=(",", ":"))


def rows(count, test):
    """Pairs of a message and the JSON that it stands for, no message twice."""
    draw, seen = random.Random(f"extraction {'test' if test else 'train'}"), {}
    while len(seen) < count:
        text, answer = message(draw, test)
        seen.setdefault(text, answer)
    return list(seen.items())
