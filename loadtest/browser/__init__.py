"""The admin site in a real browser: Chromium and screenshots."""
