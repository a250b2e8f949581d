import "./link";
import { createApp } from "vue";
import App from "./App.vue";
import { tellDocument } from "./i18n";
import { router } from "./router";
import { startTheme } from "./theme";
import "./styles.css";

startTheme();
tellDocument();
createApp(App).use(router).mount("#app");
