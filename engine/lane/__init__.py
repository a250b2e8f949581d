"""The fast lane: answers plain ``POST /v1/redemptions`` requests in callbacks, from bytes to bytes.

Every connection starts here. For any other request the lane hands the connection over to aiohttp, with every
byte that it has received.
"""
