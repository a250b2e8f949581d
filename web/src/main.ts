import "./fragment";
import { createApp } from "vue";
import App from "./App.vue";
import { tellDocument } from "./i18n";
import { router } from "./router";
import { startTheme } from "./theme";
import "./styles/tokens.css";
import "./styles/base.css";
import "./styles/controls.css";
import "./styles/shell.css";
import "./styles/parts.css";
import "./styles/tables.css";
import "./styles/dialogs.css";

startTheme();
tellDocument();
createApp(App).use(router).mount("#app");
